/**
 * The manifest of a checkpoint: what it is of, which files it has, and how each is known to be whole. It is
 * written last, so a directory without one is no checkpoint. Pure.
 *
 *   DIR/epoch-000003/  manifest.json  ram  ram.index  device  disk-0.qcow2 …
 *
 * An increment names its parent; its RAM is the parent's with its own pages over it. The file called
 * `retired.json` instead is that of a checkpoint that is given up, and kept only because others stand on it.
 */
import { createHash } from 'node:crypto';
import { z } from 'zod';
import { DamagedError } from '../errors.js';

export const MANIFEST_MAGIC = 'holdfast-checkpoint';
export const MANIFEST_VERSION = 1;

const fileName = z.string().regex(/^[\w][\w.-]*$/);
const count = z.number().int().nonnegative();
const epochNumber = z.number().int().positive();

const diskEntry = z.strictObject({
  /** As QEMU names the drive. */
  name: z.string(),
  file: fileName,
  /** Image of the VM that it is a copy of, as an absolute path. */
  image: z.string().startsWith('/'),
  format: z.enum(['raw', 'qcow2']),
  bytes: count,
  /** xxh3-64 of the whole file. */
  digest: z.string().regex(/^[0-9a-f]{16}$/),
});
export type DiskEntry = z.infer<typeof diskEntry>;

const manifestSchema = z.strictObject({
  magic: z.literal(MANIFEST_MAGIC),
  version: z.literal(MANIFEST_VERSION),
  epoch: epochNumber,
  /** Null: it has all of RAM by itself. */
  parent: epochNumber.nullable(),
  /** When the VM stood still, ISO 8601. */
  takenAt: z.string(),
  /** For how long, in milliseconds. */
  pauseMs: z.number().nonnegative(),
  vm: z.strictObject({
    name: z.string(),
    qemuVersion: z.string(),
    binary: z.string(),
    /** Command line without the binary. */
    argv: z.array(z.string()),
    cwd: z.string(),
    machineType: z.string(),
    accelerator: z.enum(['kvm', 'tcg']),
    vcpus: count,
    ramBytes: count,
    pageSize: count,
    /** Of the memory backend. */
    ramId: z.string(),
  }),
  ram: z.strictObject({
    file: fileName,
    index: fileName,
    /** Trailer of the index, which has the digests of the pages. */
    digest: z.string().regex(/^[0-9a-f]{16}$/),
    pages: count,
    zeroPages: count,
  }),
  /** A stream that QEMU loads: prefix, then the devices (lib/vm/migration-stream.ts). */
  device: z.strictObject({ file: fileName, bytes: count, sha256: z.string().regex(/^[0-9a-f]{64}$/) }),
  disks: z.array(diskEntry),
});
export type Manifest = z.infer<typeof manifestSchema>;

/** As it is written: the manifest, and a digest of it as JSON. */
export const renderManifest = (manifest: Manifest): string =>
  `${JSON.stringify({ ...manifest, sha256: digestOf(manifest) }, null, 1)}\n`;

/** @throws DamagedError that names `path` */
export const parseManifest = (text: string, path: string): Manifest => {
  let parsed: unknown;
  try {
    parsed = JSON.parse(text);
  } catch (cause) {
    throw damaged(path, 'it is not JSON', cause);
  }
  if (typeof parsed !== 'object' || parsed === null) throw damaged(path, 'it is not a JSON object');
  const { sha256, ...content } = parsed as Record<string, unknown>;
  if (content.magic !== MANIFEST_MAGIC) throw damaged(path, `its magic is not ${MANIFEST_MAGIC}`);
  if (sha256 !== digestOf(content)) throw damaged(path, 'its checksum does not match');
  if (content.version !== MANIFEST_VERSION) {
    throw new DamagedError(
      `${path} is of version ${String(content.version)}; this is one for version ${MANIFEST_VERSION}`,
      {
        cure: 'Use the version of Holdfast that wrote it.',
        details: { path },
      },
    );
  }
  const result = manifestSchema.safeParse(content);
  if (!result.success) throw damaged(path, z.prettifyError(result.error));
  return result.data;
};

/** JSON keeps the order of keys, so what was parsed digests as what was written. */
const digestOf = (content: object): string =>
  createHash('sha256').update(JSON.stringify(content)).digest('hex');

const damaged = (path: string, what: string, cause?: unknown): DamagedError =>
  new DamagedError(`${path} is damaged: ${what}`, {
    cure: 'Restore another checkpoint: `holdfast verify` tells which are whole.',
    details: { path },
    ...(cause === undefined ? {} : { cause }),
  });
