/** Whether an image can be served as it is: a raw one, of whole sectors, on this host. */
import type { Stats } from 'node:fs';
import { open, readFile, stat } from 'node:fs/promises';
import type { Refusal } from '../vm/preflight.js';

const SECTOR_BYTES = 512;

/** First bytes of formats that QEMU recognises by them (the probes in block/*.c). */
const FORMATS: readonly (readonly [format: string, offset: number, magic: string])[] = [
  ['qcow2', 0, 'QFI\u00fb'],
  ['qed', 0, 'QED\u0000'],
  ['vmdk', 0, 'KDMV'],
  ['vmdk', 0, 'COWD'],
  ['vdi', 0x40, '\u007f\u0010\u00da\u00be'],
  ['vhdx', 0, 'vhdxfile'],
  ['vpc', 0, 'conectix'],
  ['luks', 0, 'LUKS\u00ba\u00be'],
  ['parallels', 0, 'WithoutFreeSpace'],
];
const HEAD_BYTES = 512;

export type InspectedImage = { readonly bytes: number } | Refusal;

/** @param format as the command line says; undefined: QEMU would tell by the contents, and so does this */
export const inspectImage = async (
  id: string,
  path: string,
  format: string | undefined,
): Promise<InspectedImage> => {
  const refuse = (reason: string, cure: string): Refusal => ({ what: `disk ${id} (${path})`, reason, cure });
  const found = await stat(path).catch((error: Error) => error);
  if (found instanceof Error) {
    return refuse(
      `It cannot be opened: ${found.message}.`,
      'Make it first: qemu-img create -f raw FILE SIZE.',
    );
  }
  if (!found.isFile() && !found.isBlockDevice()) {
    return refuse('It is neither a regular file nor a block device.', 'Attach it read-only, or not at all.');
  }
  const file = await open(path, 'r');
  try {
    const bytes = await imageBytes(found);
    if (bytes === 0) return refuse('It is empty.', 'Give it the size of the disk: truncate -s SIZE FILE.');
    if (bytes % SECTOR_BYTES !== 0) {
      return refuse(
        `Its size, ${bytes} bytes, is no whole number of sectors.`,
        `Round it up: truncate -s %${SECTOR_BYTES} FILE.`,
      );
    }
    const head = Buffer.alloc(HEAD_BYTES);
    await file.read(head, 0, HEAD_BYTES, 0);
    const actual = format ?? formatOf(head);
    if (actual === 'raw') return { bytes };
    return refuse(
      `Its format is ${actual}, and only raw images can be replicated.`,
      'Convert it: qemu-img convert -O raw OLD NEW.raw, and name that with format=raw.',
    );
  } finally {
    await file.close();
  }
};

const formatOf = (head: Buffer): string =>
  FORMATS.find(
    ([, offset, magic]) => head.toString('latin1', offset, offset + magic.length) === magic,
  )?.[0] ?? 'raw';

/** Of a regular file or block device; 0 of anything else. */
export const imageBytes = async (found: Stats): Promise<number> => {
  if (found.isFile()) return found.size;
  return found.isBlockDevice() ? await deviceBytes(found.rdev) : 0;
};

/** stat(2) gives the size of a device as 0. Its number, as glibc's gnu_dev_major() takes it apart. */
const deviceBytes = async (rdev: number): Promise<number> => {
  const [major, minor] = [(rdev >>> 8) & 0xfff, (rdev & 0xff) | ((rdev >>> 12) & 0xfff00)];
  const sectors = await readFile(`/sys/dev/block/${major}:${minor}/size`, 'utf8').catch(() => '0');
  return Number(sectors) * SECTOR_BYTES;
};
