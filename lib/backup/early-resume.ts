/**
 * A VM that runs here before its memory is: who brings what it lacks, how long a lost source is waited for,
 * and how it ends.
 *
 *   begin ─ QEMU's faults are ours, the source has listed what is lacking ─► may run
 *     source lost ─ waits: the guest, where it needs a page ─ too long ─ nothing comes any more ──► PeerLostError
 *     nothing is lacking any more ─► QEMU is as any other ─ the source knows, or is gone ─► complete
 */
import { CancelledError, PeerLostError, StandbyError, toHoldfastError } from '../errors.js';
import type { Logger } from '../log.js';
import { timeText } from '../migrate/words.js';
import { type NativeBinding, native } from '../native.js';
import type { EarlyGuest, EarlyGuestEvent, EarlyGuestStats, PageOrigin } from '../native-early.js';
import { type Deferred, deferred } from '../transfer/deferred.js';

/** The list comes with the hand-over itself. */
const LIST_TIMEOUT_MS = 10_000;

export interface EarlyResumeOptions {
  /** QEMU, which waits for its state. */
  readonly pid: number;
  readonly ramPath: string;
  readonly ramBytes: number;
  /** Nothing of what the RAM's file holds counts. */
  readonly emptyAll: boolean;
  readonly origin: PageOrigin;
  /** How long a source that is lost is waited for. */
  readonly waitMs: number;
  readonly log: Logger;
  readonly binding?: Pick<NativeBinding, 'findRamMappings' | 'EarlyGuest'>;
}

export class EarlyResume {
  readonly #options: EarlyResumeOptions;
  readonly #guest: EarlyGuest;
  readonly #listed: Deferred<void>;
  readonly #ended: Deferred<void>;
  #complete = false;
  /** It is decided how it ends; what is told from then on is past. */
  #over = false;
  #lostTimer: NodeJS.Timeout | undefined;

  private constructor(options: EarlyResumeOptions, guest: (onEvent: OnEvent) => EarlyGuest) {
    this.#options = options;
    this.#listed = deferred();
    this.#ended = deferred();
    this.#guest = guest((event) => this.#onEvent(event));
  }

  /**
   * Settles when the VM may run.
   * @throws StandbyError, or what the data plane says: it must not run then
   */
  static async begin(options: EarlyResumeOptions): Promise<EarlyResume> {
    const { binding = native, pid, ramPath, ramBytes, emptyAll, origin } = options;
    const ram = (await binding.findRamMappings(pid, ramBytes)).find(({ path }) => path === ramPath);
    if (ram === undefined) throw new StandbyError(`the standby (process ${pid}) has not mapped ${ramPath}`);
    const resume = new EarlyResume(
      options,
      (onEvent) =>
        new binding.EarlyGuest({
          pid,
          ram: { ...ram, sizeBytes: ramBytes },
          emptyAll,
          origin,
          onEvent,
        }),
    );
    const overdue = setTimeout(
      () => resume.#listed.reject(new StandbyError('the source has not said which pages are to come')),
      LIST_TIMEOUT_MS,
    );
    try {
      await resume.#guest.start();
      await resume.#listed.promise;
      return resume;
    } catch (error) {
      await resume.#guest.release().catch(() => {}); // the standby may be tried again
      await resume.close();
      throw toHoldfastError(error);
    } finally {
      clearTimeout(overdue);
    }
  }

  /**
   * Settles when all pages are here, QEMU is as any other, and the source knows.
   * @throws PeerLostError, or what the data plane says: pages are missing for good, and the guest waits;
   *         CancelledError: closed before
   */
  get ended(): Promise<void> {
    return this.#ended.promise;
  }

  stats(): EarlyGuestStats {
    return this.#guest.stats();
  }

  /** For a VM that ends, or never ran, where pages are missing. Idempotent. */
  async close(): Promise<void> {
    this.#over = true;
    clearTimeout(this.#lostTimer);
    this.#ended.reject(new CancelledError('nobody waits for the pages of this VM any more'));
    await this.#guest.close();
  }

  #onEvent(event: EarlyGuestEvent): void {
    const { log } = this.#options;
    if (this.#over) return;
    switch (event.type) {
      case 'listed':
        log.info({ pages: event.pages }, 'pages are to come while the VM runs');
        this.#listed.resolve();
        return;
      case 'found':
        clearTimeout(this.#lostTimer);
        log.info({ pagesLeft: this.stats().pagesLeft }, 'the source is back');
        return;
      case 'lost':
        if (this.#complete) void this.#finish();
        else this.#waitForSource(event.message);
        return;
      case 'complete':
        this.#completed();
        return;
      case 'failed':
        // It lacks nothing: what fails now is the stream by which that was told.
        if (this.#complete) void this.#finish();
        else this.#fail(toHoldfastError(Object.assign(new Error(event.message), { code: event.code })));
        return;
    }
  }

  #waitForSource(reason: string): void {
    const { log, waitMs } = this.#options;
    log.warn({ reason, waitMs, pagesLeft: this.stats().pagesLeft }, 'the source is lost; waiting for it');
    clearTimeout(this.#lostTimer);
    this.#lostTimer = setTimeout(() => void this.#giveUp(reason), waitMs);
  }

  /**
   * A source that is back at this very moment must not hear that all is here, and end its VM, while this one is
   * ended: so nothing is served any more before it is looked whether anything is missing.
   */
  async #giveUp(reason: string): Promise<void> {
    this.#over = true;
    try {
      await this.#guest.stop();
    } catch (error) {
      this.#fail(toHoldfastError(error));
      return;
    }
    const { pagesLeft } = this.stats();
    if (pagesLeft === 0) await this.#finish();
    else this.#fail(this.#sourceLost(reason, pagesLeft));
  }

  #sourceLost(reason: string, pagesLeft: number): PeerLostError {
    const waited = timeText(this.#options.waitMs);
    return new PeerLostError(
      `the source of the VM was lost, and not back within ${waited} (${reason}): ${pagesLeft} of its pages are missing`,
      {
        cure: 'What ran here is gone. The source has the VM as it was when it was stopped there, if its host lives: QMP cont goes back to that moment.',
      },
    );
  }

  /** The source closes its stream when it has heard so; while it has not, it may have to ask again. */
  #completed(): void {
    this.#complete = true;
    clearTimeout(this.#lostTimer);
    this.#lostTimer = setTimeout(() => void this.#finish(), this.#options.waitMs);
  }

  async #finish(): Promise<void> {
    clearTimeout(this.#lostTimer);
    try {
      await this.#guest.release();
    } catch (error) {
      // It has all it needs; what is left in it answers nobody.
      this.#options.log.warn({ err: toHoldfastError(error).message }, 'releasing the VM');
    }
    this.#ended.resolve();
  }

  #fail(error: Error): void {
    clearTimeout(this.#lostTimer);
    this.#listed.reject(error);
    this.#ended.reject(error);
  }
}

type OnEvent = (event: EarlyGuestEvent) => void;
