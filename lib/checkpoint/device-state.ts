/** The device state of a checkpoint, as a stream that QEMU loads: prefix, then what was saved in the pause. */
import { createHash } from 'node:crypto';
import { open } from 'node:fs/promises';
import { checkDeviceStateHeader } from '../vm/migration-stream.js';

export const digestOf = (bytes: Uint8Array): string => createHash('sha256').update(bytes).digest('hex');

export const writeDeviceState = async (parts: {
  readonly prefix: Uint8Array;
  readonly state: Uint8Array;
  /** Of the state: the prefix carries that already. */
  readonly skipBytes: number;
  readonly path: string;
}): Promise<{ readonly bytes: number; readonly sha256: string }> => {
  checkDeviceStateHeader(parts.state);
  const stream = Buffer.concat([parts.prefix, parts.state.subarray(parts.skipBytes)]);
  const file = await open(parts.path, 'wx', 0o600);
  try {
    await file.writeFile(stream);
    await file.sync();
  } finally {
    await file.close();
  }
  return { bytes: stream.length, sha256: digestOf(stream) };
};
