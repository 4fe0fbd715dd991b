/**
 * RAM of a VM that runs, copied to another file while it does: round by round what was written meanwhile, as for
 * checkpoints, so that little is left when it stands still. No byte of it crosses a socket.
 *
 *   begin ─ first round: all that is populated ─ catchUp: rounds ─ VM stopped ─ finish: the rest
 *
 * The file is RAM as it was at the stop, holes where it is zero; its index says what lies in it, as a checkpoint's.
 */
import type { FinishedLayer, NativeCheckpointer } from '../checkpoint/binding.js';
import { needsAnotherRound } from '../checkpoint/rounds.js';
import { UnsupportedVmError } from '../errors.js';
import { native, type RamMapping } from '../native.js';
import type { VmDescription } from '../vm/describe.js';

/** What cannot be staged is copied where it lies: the VM stands still either way. */
const STAGING_BYTES_MAX = 256 << 20;
const COPY_THREADS = 2;
/** Nobody can write() to hugetlbfs. */
const PAGE_BYTES = 4_096;

export class RamCopy implements AsyncDisposable {
  readonly #engine: NativeCheckpointer;
  readonly #pageBytes: number;

  private constructor(engine: NativeCheckpointer, pageBytes: number) {
    this.#engine = engine;
    this.#pageBytes = pageBytes;
  }

  /**
   * Settles when the file has what the VM had populated.
   * @throws UnsupportedVmError, InjectError, RamMappingError, SystemError (the file is there already), CancelledError
   */
  static async begin(vm: VmDescription, to: string, signal?: AbortSignal): Promise<RamCopy> {
    const ram = copyableRam(vm);
    const engine = new native.Checkpointer({
      pid: vm.process.pid,
      ram,
      stagingBytesMax: STAGING_BYTES_MAX,
      copyThreads: COPY_THREADS,
    });
    const copy = new RamCopy(engine, ram.pageSize);
    const cancel = (): void => engine.cancelWrites();
    try {
      await engine.attach();
      signal?.addEventListener('abort', cancel, { once: true });
      signal?.throwIfAborted();
      await engine.begin({ ramPath: to, full: true });
      await engine.round();
      return copy;
    } catch (error) {
      await copy[Symbol.asyncDispose]();
      throw error;
    } finally {
      signal?.removeEventListener('abort', cancel);
    }
  }

  /** Writes what the VM has written since, until little is left, or rounds don't help. */
  async catchUp(): Promise<void> {
    const dirtyBytes: number[] = [];
    while (needsAnotherRound(dirtyBytes, STAGING_BYTES_MAX)) {
      dirtyBytes.push((await this.#engine.round()).dirtyPages * this.#pageBytes);
    }
  }

  /** The VM stands still. */
  async finish(indexPath: string): Promise<FinishedLayer> {
    await this.#engine.capture();
    return await this.#engine.finish({ indexPath });
  }

  /** The VM is not tracked any more; the file stays. Idempotent. Also when its QEMU has ended. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.#engine.detach().catch(() => {});
    await this.#engine.close();
  }
}

/** @throws UnsupportedVmError */
export const copyableRam = (vm: VmDescription): RamMapping => {
  const ram = vm.memoryBackends[0]?.mapping;
  if (ram === undefined || ram.pageSize !== PAGE_BYTES) throw hasHugePages();
  return ram;
};

const hasHugePages = (): UnsupportedVmError =>
  new UnsupportedVmError(
    'guest RAM is in huge pages, to whose files nobody can write; this VM cannot be checkpointed by a hand-off, and nothing was changed',
    { cure: 'Use --method capture.' },
  );
