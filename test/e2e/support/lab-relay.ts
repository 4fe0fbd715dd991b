/**
 * Stands between a primary and its backup and decides when an acknowledgement arrives. A program of its
 * own, in the backup's namespace: `node lab-relay.js '{"from":"10.78.0.2","to":"10.77.0.2",…}'`.
 *
 * The control port passes as it is. On the bulk ports everything passes until the command `withhold`; then
 *
 *   the next ACK stays here                                ──► {"event":"withheld","epoch":N}
 *   command `acknowledge`: that ACK goes, and nothing of a later epoch reaches the backup any more
 *
 * so that N is the last checkpoint that both sides know of. After the command `pass` everything passes
 * again; an ACK that was kept is not made up for. Commands: one per line of standard input.
 */

import { createConnection, createServer, type Socket } from 'node:net';
import { createInterface } from 'node:readline';
import { type FramePiece, FrameSplitter, frameTypes } from './lab-frames.js';

export interface RelayOptions {
  /** Address it listens on. */
  readonly from: string;
  /** Address the backup listens on, with the same ports. */
  readonly to: string;
  readonly controlPort: number;
  readonly bulkPorts: readonly number[];
}

const options = JSON.parse(process.argv[2] ?? '') as RelayOptions;

const print = (message: object): void => {
  process.stdout.write(`${JSON.stringify(message)}\n`);
};

let mode: 'pass' | 'withhold' | 'last' = 'pass';
let withheld: (() => void)[] = [];

/** Copies one direction; `pass` says what of a chunk goes on. A close passes on, too. */
const copy = (from: Socket, to: Socket, pass: (chunk: Buffer) => readonly Buffer[]): void => {
  from.on('data', (chunk: Buffer) => {
    let full = false;
    for (const part of pass(chunk)) full = !to.write(part);
    if (!full) return;
    from.pause();
    to.once('drain', () => from.resume());
  });
  from.on('error', () => {});
  from.on('close', () => to.destroy());
};

const acknowledgements = (primary: Socket): ((piece: FramePiece) => Buffer[]) => {
  return ({ type, epoch, first, bytes }) => {
    if (type !== frameTypes.ack || mode !== 'withhold') return [bytes];
    withheld.push(() => primary.write(bytes));
    if (first) print({ event: 'withheld', epoch });
    return [];
  };
};

const epochs = (): ((piece: FramePiece) => Buffer[]) => {
  let blocked = false;
  return ({ type, first, bytes }) => {
    blocked ||= first && type === frameTypes.begin && mode === 'last';
    return blocked ? [] : [bytes];
  };
};

const relay = async (port: number, isBulk: boolean): Promise<void> => {
  const server = createServer({ noDelay: true }, (primary) => {
    const backup = createConnection({ host: options.to, port, noDelay: true });
    const [up, down] = [new FrameSplitter(), new FrameSplitter()];
    const [passUp, passDown] = [epochs(), acknowledgements(primary)];
    copy(primary, backup, (chunk) => (isBulk ? up.push(chunk).flatMap(passUp) : [chunk]));
    copy(backup, primary, (chunk) => (isBulk ? down.push(chunk).flatMap(passDown) : [chunk]));
  });
  await new Promise<void>((resolve, reject) => {
    server.once('error', reject);
    server.listen(port, options.from, resolve);
  });
};

createInterface({ input: process.stdin }).on('line', (command) => {
  if (command === 'withhold') mode = 'withhold';
  if (command === 'pass') {
    mode = 'pass';
    withheld = [];
  }
  if (command === 'acknowledge') {
    mode = 'last';
    for (const send of withheld) send();
    withheld = [];
  }
});
process.stdin.on('end', () => process.exit(0));

await Promise.all([relay(options.controlPort, false), ...options.bulkPorts.map((port) => relay(port, true))]);
print({ event: 'listening' });
