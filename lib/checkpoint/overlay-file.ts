/**
 * The overlay of an image, as a file: an empty qcow2 image over one that QEMU has open, made by qemu-img. Both methods
 * of taking a checkpoint have it in the same place, so whoever finds one knows what it is.
 */
import { execFile } from 'node:child_process';
import { rm } from 'node:fs/promises';
import { promisify } from 'node:util';
import { z } from 'zod';
import { DiskError } from '../errors.js';
import type { DiskEntry } from './manifest.js';

export const OVERLAY_SUFFIX = '.holdfast-overlay';

export const overlayOf = (image: string): string => image + OVERLAY_SUFFIX;

export interface OverlaidImage {
  /** Absolute. */
  readonly image: string;
  readonly format: DiskEntry['format'];
  /** Virtual size. */
  readonly bytes: number;
}

const run = promisify(execFile);

/**
 * In place of what lies there: whoever calls this has looked.
 * @param bytes default: asked of qemu-img
 * @throws DiskError: then there is none
 */
export const createOverlay = async ({
  image,
  format,
  bytes,
}: Omit<OverlaidImage, 'bytes'> & Partial<OverlaidImage>): Promise<void> => {
  const overlay = overlayOf(image);
  // -u: the image is in use, and is not opened. The overlay names it, for `qemu-img commit`.
  const args = ['create', '-q', '-u', '-f', 'qcow2', '-b', image, '-F', format, overlay];
  try {
    await run('qemu-img', [...args, String(bytes ?? (await sizeOf(image, format)))]);
  } catch (cause) {
    await rm(overlay, { force: true }); // a part of one is no image, and in the way
    throw new DiskError(`no overlay could be made over ${image}: ${(cause as Error).message}`, {
      cause,
      cure: 'Install qemu-img (package qemu-utils). Beside the image there must be room, and leave to write.',
      details: { image, overlay },
    });
  }
};

const sizeOf = async (image: string, format: DiskEntry['format']): Promise<number> => {
  const { stdout } = await run('qemu-img', ['info', '-U', '--output=json', '-f', format, image]);
  return z.object({ 'virtual-size': z.number() }).parse(JSON.parse(stdout))['virtual-size'];
};
