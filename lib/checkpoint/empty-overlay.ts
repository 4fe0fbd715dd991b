/** Whether a qcow2 overlay holds any write: one that was prepared and never put to use does not. */
import { open } from 'node:fs/promises';

// docs/interop/qcow2.txt in QEMU: magic "QFI\xfb"; l1_size at 36, l1_table_offset at 40, big-endian.
const HEADER_BYTES = 72;
const MAGIC = 0x514649fb;
/** Of 8 bytes each: 64 TiB of clusters of 64 KiB. */
const L1_ENTRIES_MAX = 131_072;

/** True if nothing is allocated in it, or if it is cut off before it is an image at all. */
export const isEmptyOverlay = async (path: string): Promise<boolean> => {
  const file = await open(path, 'r');
  try {
    const header = Buffer.alloc(HEADER_BYTES);
    const { bytesRead } = await file.read(header, 0, HEADER_BYTES, 0);
    if (bytesRead < HEADER_BYTES) return true;
    const entries = header.readUInt32BE(36);
    if (header.readUInt32BE(0) !== MAGIC || entries > L1_ENTRIES_MAX) return false;
    const table = Buffer.alloc(entries * 8);
    const found = await file.read(table, 0, table.length, Number(header.readBigUInt64BE(40)));
    return table.subarray(0, found.bytesRead).every((byte) => byte === 0);
  } finally {
    await file.close();
  }
};
