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
import { type HoldfastError, InjectError, toHoldfastError, UnsupportedVmError } from '../errors.js';
import { native, type RamMapping } from '../native.js';
import type { VmDescription } from '../vm/describe.js';
import { isAlive, type ProcessIdentity } from '../vm/process.js';

/** What cannot be staged is copied where it lies: the VM stands still either way. */
const STAGING_BYTES_MAX = 256 << 20;
const COPY_THREADS = 2;
/** Nobody can write() to hugetlbfs. */
const PAGE_BYTES = 4_096;

export interface RamCopyOptions {
  readonly vm: VmDescription;
  readonly to: string;
  /** Of the first round. */
  readonly signal?: AbortSignal | undefined;
  readonly warn: (error: HoldfastError) => void;
}

export class RamCopy implements AsyncDisposable {
  readonly #engine: NativeCheckpointer;
  readonly #pageBytes: number;
  readonly #process: ProcessIdentity;
  readonly #warn: RamCopyOptions['warn'];
  #closing: Promise<void> | undefined;

  private constructor(engine: NativeCheckpointer, pageBytes: number, { vm, warn }: RamCopyOptions) {
    this.#engine = engine;
    this.#pageBytes = pageBytes;
    this.#process = vm.process;
    this.#warn = warn;
  }

  /**
   * Settles when the file has what the VM had populated.
   * @throws UnsupportedVmError, InjectError, RamMappingError, SystemError (the file is there already), CancelledError
   */
  static async begin(options: RamCopyOptions): Promise<RamCopy> {
    const { vm, to, signal } = options;
    const ram = copyableRam(vm);
    const engine = new native.Checkpointer({
      pid: vm.process.pid,
      ram,
      stagingBytesMax: STAGING_BYTES_MAX,
      copyThreads: COPY_THREADS,
    });
    const copy = new RamCopy(engine, ram.pageSize, options);
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
  [Symbol.asyncDispose](): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  async #close(): Promise<void> {
    await this.#engine.detach().catch(async (error: unknown) => {
      if (await isAlive(this.#process)) this.#warn(tracked(error, this.#process.pid));
    });
    await this.#engine.close();
  }
}

const tracked = (cause: unknown, pid: number): InjectError =>
  new InjectError(`the tracker could not be taken out of process ${pid}: ${toHoldfastError(cause).message}`, {
    cause,
    cure: 'The VM is not harmed, but is taken for a protected one. The next `holdfast checkpoint --method capture` of it takes the tracker out.',
    details: { pid },
  });

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
