/**
 * What a relay's process does beside the native thread that moves the frames: it claims the socket,
 * leaves a record by which it is found, and ends with its VM.
 */
import { existsSync } from 'node:fs';
import { ConfigError } from '../errors.js';
import { native, type RelayEvent } from '../native.js';
import { identifyProcess, isAlive, isSameProcess, waitForExit } from '../vm/process.js';
import {
  type RelaySpec,
  readRelayRecord,
  relayFiles,
  removeRelayFiles,
  runningRelay,
  targetText,
  writeRelayRecord,
} from './relay-files.js';

export interface RelayHostOptions {
  readonly spec: RelaySpec;
  /** From the first frame on. */
  readonly hold: boolean;
  readonly onReady: () => void;
  readonly onEvent: (event: RelayEvent) => void;
  /** Ends it while the VM runs on. */
  readonly signal: AbortSignal;
}

/**
 * Relays until the VM ends or the signal aborts. Settles with which of them it was.
 * @throws ConfigError if another relay serves this socket; what the native relay throws.
 */
export const hostRelay = async (options: RelayHostOptions): Promise<'vm-ended' | 'stopped'> => {
  const { spec, signal } = options;
  const files = relayFiles(spec.socket);
  const other = await runningRelay(spec.socket);
  if (other !== undefined) {
    throw new ConfigError(
      `--netdev: process ${other.process.pid} is the relay between ${spec.socket} and the ${targetText(other.target)} already`,
      { cure: `End it first: kill ${other.process.pid}. The VM has no network meanwhile.` },
    );
  }
  const stop = new AbortController();
  const onStop = (): void => stop.abort();
  signal.addEventListener('abort', onStop, { once: true });
  if (signal.aborted) onStop();
  const relay = new native.Relay({
    qemuSocket: spec.socket,
    target: spec.target,
    controlSocket: spec.control,
    heldBytesMax: spec.heldBytesMax,
    // A relay that died while it held left this behind: what the guest sends now is no less unacknowledged.
    hold: options.hold || existsSync(files.held),
    onEvent: options.onEvent,
  });
  let vmEnded = false;
  try {
    await writeRelayRecord({ ...spec, process: await identifyProcess(process.pid) });
    options.onReady();
    if (spec.vm === null) await aborted(stop.signal);
    else vmEnded = await endsBefore(spec.vm, spec.socket, stop.signal);
  } finally {
    signal.removeEventListener('abort', onStop);
    await relay.close();
    const held = existsSync(files.held) && !vmEnded;
    await removeRelayFiles(spec, held ? 'keep-held' : 'all');
  }
  return vmEnded ? 'vm-ended' : 'stopped';
};

const aborted = async (signal: AbortSignal): Promise<void> => {
  if (signal.aborted) return;
  await new Promise<void>((resolve) => signal.addEventListener('abort', () => resolve(), { once: true }));
};

const endsBefore = async (
  vm: NonNullable<RelaySpec['vm']>,
  socket: string,
  signal: AbortSignal,
): Promise<boolean> => {
  const ended = await waitForExit(vm, { signal }).then(
    () => true,
    () => false,
  );
  // A hand-off: another process has the VM, and the record says so (lib/handoff).
  const next = ended ? (await readRelayRecord(socket))?.vm : undefined;
  const isHandedOver =
    next !== undefined && next !== null && !isSameProcess(next, vm) && (await isAlive(next));
  return isHandedOver ? await endsBefore(next, socket, signal) : ended;
};
