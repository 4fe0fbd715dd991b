// A relay in a process, and so in a network namespace, of its own:
//
//   relay-child.mjs '{"qemuSocket":…, "target":…, "controlSocket":…, "heldBytesMax":…, "hold":…}'
//
// Prints its events, one JSON object a line. Ends when standard input does.

import { createRequire } from 'node:module';
import { fileURLToPath } from 'node:url';

const native = createRequire(import.meta.url)('node-gyp-build')(
  fileURLToPath(new URL('../..', import.meta.url)),
);
const relay = new native.Relay({
  ...JSON.parse(process.argv[2]),
  onEvent: (event) => console.log(JSON.stringify(event)),
});
process.stdin.on('end', () => void relay.close()).resume();
