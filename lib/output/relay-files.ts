/**
 * What a relay keeps beside the socket on which QEMU listens for it, and so how it is found: by the
 * primary (also one that is restarted, and one on the host of a failover), and by whoever starts it again.
 *
 *   net0.sock         QEMU's, of `-netdev stream,server=on`
 *   net0.sock.relay   the record: which process, which target
 *   net0.sock.ctl     its control socket, unless the record names another
 *   net0.sock.held    there while a primary wants output held: a relay that is started anew then holds at once
 *   net0.sock.log
 */
import { readFile, rename, rm, writeFile } from 'node:fs/promises';
import { resolve } from 'node:path';
import { z } from 'zod';
import type { VmDescription } from '../vm/describe.js';
import { streamServers } from '../vm/netdevs.js';
import { isAlive, isSameProcess } from '../vm/process.js';

export const HELD_BYTES_MAX_DEFAULT = 16 << 20;

const identity = z.strictObject({ pid: z.number().int().positive(), startTicks: z.string() });

const relaySpec = z.strictObject({
  /** QEMU's. */
  socket: z.string(),
  /** On which it listens for its controller. */
  control: z.string(),
  target: z.union([z.strictObject({ tap: z.string() }), z.strictObject({ unix: z.string() })]),
  heldBytesMax: z.number().int().positive(),
  /** QEMU's process: the relay ends with it. Null: it ends only when it is told to. */
  vm: identity.nullable(),
});
export type RelaySpec = z.infer<typeof relaySpec>;
export type RelayTarget = RelaySpec['target'];

const relayRecord = relaySpec.extend({ process: identity });
export type RelayRecord = z.infer<typeof relayRecord>;

export interface RelayFiles {
  readonly record: string;
  readonly held: string;
  readonly log: string;
}

export const relayFiles = (socket: string): RelayFiles => ({
  record: `${socket}.relay`,
  held: `${socket}.held`,
  log: `${socket}.log`,
});

export const controlSocketOf = (socket: string): string => `${socket}.ctl`;

export const targetText = (target: RelayTarget): string =>
  'tap' in target ? `tap device ${target.tap}` : `socket ${target.unix}`;

export const readRelayRecord = async (socket: string): Promise<RelayRecord | undefined> => {
  const text = await readFile(relayFiles(socket).record, 'utf8').catch(() => undefined);
  if (text === undefined) return undefined;
  try {
    return relayRecord.parse(JSON.parse(text));
  } catch {
    return undefined; // of another version: as good as absent
  }
};

export const writeRelayRecord = async (record: RelayRecord): Promise<void> => {
  const path = relayFiles(record.socket).record;
  const temporary = `${path}.${record.process.pid}`;
  await writeFile(temporary, `${JSON.stringify(record, null, 2)}\n`, { mode: 0o600 });
  await rename(temporary, path); // a reader sees the old record or the new one
};

/** All but the log, which says why; `keep-held`: output is still wanted held, by whichever relay comes next. */
export const removeRelayFiles = async (
  { socket, control }: Pick<RelaySpec, 'socket' | 'control'>,
  which: 'all' | 'keep-held',
): Promise<void> => {
  const { record, held } = relayFiles(socket);
  const paths = which === 'all' ? [record, control, held] : [record, control];
  await Promise.all(paths.map((path) => rm(path, { force: true })));
};

/** The record of the relay that serves this socket now. */
export const runningRelay = async (socket: string): Promise<RelayRecord | undefined> => {
  const record = await readRelayRecord(socket);
  return record !== undefined && (await isAlive(record.process)) ? record : undefined;
};

export interface VmRelay extends RelaySpec {
  /** Id of QEMU's network backend. */
  readonly netdev: string;
}

/** The VM's relays, as recorded; one that has ended can be started again from this. */
export const relaysOf = async (
  vm: Pick<VmDescription, 'argv' | 'cwd' | 'process'>,
): Promise<readonly VmRelay[]> => {
  const found = streamServers(vm.argv).map(async ({ netdev, socket }) => {
    const record = await readRelayRecord(resolve(vm.cwd, socket));
    if (record === undefined) return [];
    // The record of an earlier QEMU with the same paths.
    if (record.vm !== null && !isSameProcess(record.vm, vm.process)) return [];
    const { process: _process, ...spec } = record;
    return [{ ...spec, vm: vm.process, netdev }];
  });
  return (await Promise.all(found)).flat();
};
