/** What checkpoints on disk need of the native addon. Failures are as in lib/native.ts. */
import type { AttachResult, PrimaryEngineOptions } from '../native.js';

export interface CheckpointerOptions
  extends Pick<PrimaryEngineOptions, 'pid' | 'ram' | 'stagingBytesMax' | 'copyThreads'> {}

export interface LayerRound {
  readonly pages: number;
  readonly zeroPages: number;
  /** Written since this round's scan: what the next round, or the pause, has left. */
  readonly dirtyPages: number;
  readonly scanMs: number;
  readonly writeMs: number;
}

export interface LayerCapture {
  /** False: too much for the staging memory. The VM must stay stopped until finish() settles. */
  readonly staged: boolean;
  readonly dirtyPages: number;
  /** Within the pause. */
  readonly scanMs: number;
  readonly copyMs: number;
}

export interface FinishedLayer {
  /** Pages with content in it. */
  readonly pages: number;
  /** Of an increment: pages that are zero now. */
  readonly zeroPages: number;
  /** Trailer of its index: 16 hexadecimal digits. */
  readonly digest: string;
  readonly writeMs: number;
}

/**
 * Writes a VM's RAM to files, layer by layer: { begin ─ round… ─ capture ─ finish ─ commit }*. The VM runs in all but
 * capture(). A layer that is not committed is given up by giveUp() or the next begin(), and no page of it is
 * forgotten: the next increment has it, or, after a full one, only a full one will do.
 */
export interface NativeCheckpointer {
  attach(): Promise<AttachResult>;
  /** `ramPath`: the layer's file, which must not be there yet. */
  begin(options: { readonly ramPath: string; readonly full: boolean }): Promise<void>;
  /** Writes what the guest has populated (first round of a full layer), or written since the last scan. */
  round(): Promise<LayerRound>;
  /** Right after the VM was stopped. */
  capture(): Promise<LayerCapture>;
  /** The layer and its index are on stable storage when it settles. */
  finish(options: { readonly indexPath: string }): Promise<FinishedLayer>;
  commit(): Promise<void>;
  giveUp(): Promise<void>;
  /** A round() or finish() under way, or waiting, rejects with HOLDFAST_E_CANCELLED. */
  cancelWrites(): void;
  /** Takes the userfaultfd out of QEMU again. Idempotent. Works on a dead QEMU. */
  detach(): Promise<void>;
  /** Stops the thread. Does not detach. Idempotent. */
  close(): Promise<void>;
}

/** One layer of guest RAM (native/checkpoint/page_table.h). */
export interface LayerFiles {
  readonly ram: string;
  readonly index: string;
  /** As finish() gave it. */
  readonly digest: string;
}

export interface DamagedPage {
  /** Which of the layers, from 0. */
  readonly layer: number;
  readonly page: number;
}

export interface MergedLayers {
  /** Of the upper layer. */
  readonly mergedPages: number;
  /** With content, that the lower layer has now. */
  readonly pages: number;
  readonly digest: string;
}

export interface CopiedFile {
  readonly bytes: number;
  /** Copied; 0 where the file system shares the blocks. */
  readonly dataBytes: number;
  readonly shared: boolean;
}

/** Layers are given bottom first: a full one, then the increments over it. */
export interface CheckpointBinding {
  readonly Checkpointer: new (options: CheckpointerOptions) => NativeCheckpointer;
  /** Reads every page that counts. Rejects with HOLDFAST_E_CHECKSUM where an index or a file's length is wrong. */
  verifyLayers(options: {
    readonly layers: readonly LayerFiles[];
    readonly limit: number;
  }): Promise<readonly DamagedPage[]>;
  /** Creates a sparse file that is guest RAM. Rejects with HOLDFAST_E_CHECKSUM, and leaves none, if a page is damaged. */
  assembleRam(options: { readonly layers: readonly LayerFiles[]; readonly path: string }): Promise<void>;
  /** Writes the upper layer into the lower one's file, in place; may be repeated after it was cut off. */
  mergeLayers(options: {
    readonly lower: LayerFiles;
    readonly upper: LayerFiles;
    readonly indexPath: string;
  }): Promise<MergedLayers>;
  /** Creates `to`, by reference where the file system can. Holes stay holes. */
  copySparse(options: { readonly from: string; readonly to: string }): Promise<CopiedFile>;
}
