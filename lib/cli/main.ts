#!/usr/bin/env node
import { runCli } from './program.js';

// The daemons close what they opened before this; a handle that is left must not keep the process.
process.exit(await runCli(process.argv.slice(2)));
