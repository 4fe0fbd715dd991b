#!/usr/bin/env node
import { setFlagsFromString } from 'node:v8';

// What a takeover or a hand-over does, it does for the first time, and while the VM stands still: V8 is to have
// compiled it before, and not to have thrown it away since.
setFlagsFromString('--no-lazy');
setFlagsFromString('--no-flush-bytecode');
const { runCli } = await import('./program.js');

// The daemons close what they opened before this; a handle that is left must not keep the process.
process.exit(await runCli(process.argv.slice(2)));
