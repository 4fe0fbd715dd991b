/**
 * The packet gate under any interleaving of frames, floods, boundaries, acknowledgements, deaths of the
 * controller and slowness of the target: no frame leaves before the acknowledgement of its epoch, order is
 * kept, nothing is lost or doubled, and what is held stays within its bound. The relay is the real one.
 */

import fc from 'fast-check';
import { expect, test } from 'vitest';
import { native } from '../../lib/native.js';
import type { RelayControl } from '../../lib/output/relay-control.js';
import { until } from './primary-qemu.js';
import { numbered, RelayLab } from './relay-lab.js';

const heldBytesMax = 128 << 10;
const overshootBytesMax = 16 << 20;

type Step =
  | { readonly do: 'frames'; readonly count: number; readonly bytes: number }
  /** Part of a frame, whose rest comes with the next frames. */
  | { readonly do: 'part'; readonly bytes: number; readonly cut: number }
  | { readonly do: 'boundary' }
  | { readonly do: 'prepare' }
  | { readonly do: 'acknowledge' }
  | { readonly do: 'controller dies' }
  | { readonly do: 'target stops reading' }
  | { readonly do: 'target reads' }
  | { readonly do: 'wait'; readonly ms: number };

const only = (...names: readonly Step['do'][]): fc.Arbitrary<Step> =>
  fc.constantFrom(...names).map((name) => ({ do: name }) as Step);

const stepArbitrary: fc.Arbitrary<Step> = fc.oneof(
  {
    arbitrary: fc.record({
      do: fc.constant('frames'),
      count: fc.integer({ min: 1, max: 40 }),
      bytes: fc.integer({ min: 4, max: 1514 }),
    }),
    weight: 5,
  },
  // A flood: several times the bound.
  {
    arbitrary: fc.record({
      do: fc.constant('frames'),
      count: fc.integer({ min: 200, max: 800 }),
      bytes: fc.constant(1000),
    }),
    weight: 1,
  },
  {
    arbitrary: fc.record({
      do: fc.constant('part'),
      bytes: fc.constant(600),
      cut: fc.integer({ min: 1, max: 603 }),
    }),
    weight: 1,
  },
  { arbitrary: only('boundary', 'acknowledge'), weight: 8 },
  { arbitrary: only('prepare', 'controller dies', 'target stops reading', 'target reads'), weight: 3 },
  { arbitrary: fc.record({ do: fc.constant('wait'), ms: fc.nat(3) }), weight: 2 },
) as fc.Arbitrary<Step>;

/** The daemon's side of the rule, and what has been seen of the relay's. */
class Run {
  readonly #lab: RelayLab;
  readonly #releaseEarly: boolean;
  #control: RelayControl;
  /** All that QEMU has been given to send, and where its frames end. */
  #sent: Buffer[] = [];
  #ends: number[] = [0];
  #sentBytes = 0;
  #unfinished: Buffer = Buffer.alloc(0);
  /** Frames before the last boundary; and of these, those whose checkpoint is acknowledged. */
  #marked = 0;
  #acknowledged = 0;
  #prepared = false;
  #heldBytes = 0;
  #outputs = 0;

  private constructor(lab: RelayLab, control: RelayControl, releaseEarly: boolean) {
    this.#lab = lab;
    this.#control = control;
    this.#releaseEarly = releaseEarly;
    this.#listen();
  }

  static async start(lab: RelayLab, releaseEarly: boolean): Promise<Run> {
    return new Run(lab, await lab.control(), releaseEarly);
  }

  async step(step: Step): Promise<void> {
    switch (step.do) {
      case 'frames':
        this.#finish();
        for (let i = 0; i < step.count; i += 1) this.#write(numbered(this.#ends.length, step.bytes), true);
        break;
      case 'part': {
        this.#finish();
        const frame = numbered(this.#ends.length, step.bytes);
        this.#unfinished = frame.subarray(step.cut);
        this.#write(frame.subarray(0, step.cut), false);
        break;
      }
      case 'boundary':
        await this.#boundary();
        break;
      case 'prepare':
        await this.#control.prepare();
        this.#prepared = true;
        break;
      case 'acknowledge':
        this.#acknowledged = this.#marked;
        await this.#control.release();
        break;
      case 'controller dies': {
        // In the middle of whatever it had asked for.
        const asked = this.#control.stats().catch(() => undefined);
        await this.#control.close();
        await asked;
        this.#control = await this.#lab.control();
        this.#listen();
        break;
      }
      case 'target stops reading':
        this.#lab.target.socket!.pause();
        break;
      case 'target reads':
        this.#lab.target.socket!.resume();
        break;
      case 'wait':
        await new Promise((resolve) => setTimeout(resolve, step.ms));
    }
    await this.#check(step);
  }

  /** Everything is acknowledged in the end, and everything has arrived. */
  async end(): Promise<void> {
    this.#finish();
    this.#lab.target.socket!.resume();
    await until('all frames to arrive', () => {
      void this.#boundaryAndRelease();
      return this.#lab.target.received.length === this.#sentBytes;
    });
    expect(Buffer.compare(this.#lab.target.received, Buffer.concat(this.#sent))).toBe(0);
    const stats = await this.#control.stats();
    expect(stats).toMatchObject({ heldFrames: 0, heldBytes: 0, droppedFrames: 0, discardedFrames: 0 });
    expect(stats.outFrames).toBe(this.#ends.length - 1);
    expect(stats.heldBytesPeak).toBeLessThanOrEqual(heldBytesMax + overshootBytesMax);
    await this.#control.close();
  }

  async #boundaryAndRelease(): Promise<void> {
    try {
      await Promise.all([this.#control.boundary(), this.#control.release()]);
    } catch {
      // closed meanwhile: the loop that called this has seen the end
    }
  }

  async #boundary(): Promise<void> {
    const allSent = this.#lab.qemu.socket!.writableLength === 0;
    const frames = await this.#control.boundary();
    this.#marked += frames;
    // What lay in the socket is before the mark, exactly; QEMU's own backlog may have followed.
    if (allSent) expect(this.#marked).toBe(this.#ends.length - 1);
    expect(this.#marked).toBeLessThan(this.#ends.length);
    expect(this.#outputs).toBeLessThanOrEqual(1);
    this.#outputs = 0;
    this.#prepared = false;
    if (this.#releaseEarly) await this.#control.release();
  }

  async #check(step: Step): Promise<void> {
    const stats = await this.#control.stats();
    await new Promise(setImmediate); // an output behind a boundary
    if (stats.heldBytes > heldBytesMax && step.do !== 'boundary' && !this.#prepared) {
      expect(stats.heldBytes).toBeLessThanOrEqual(this.#heldBytes);
    }
    this.#heldBytes = stats.heldBytes;
    // With all that was released gone, what is held beyond the mark is the running epoch's; unless frames
    // came between what was counted and what was heard of it.
    const outputs = this.#outputs;
    const later = await this.#control.stats();
    const isStill = later.heldFrames === stats.heldFrames && later.outFrames === stats.outFrames;
    if (isStill && stats.outFrames === this.#acknowledged) {
      expect(outputs).toBe(stats.heldFrames > stats.boundaryFrames ? 1 : 0);
    }
    // The rule. All that has left by now is known here a moment later at the latest.
    expect(stats.outFrames).toBeLessThanOrEqual(this.#acknowledged);
    expect(this.#lab.target.received.length).toBeLessThanOrEqual(this.#ends[this.#acknowledged]!);
  }

  #listen(): void {
    this.#outputs = 0;
    this.#control.onOutput(() => {
      this.#outputs += 1;
    });
  }

  #write(bytes: Buffer, whole: boolean): void {
    this.#sent.push(bytes);
    this.#sentBytes += bytes.length;
    if (whole) this.#ends.push(this.#sentBytes);
    this.#lab.qemu.write(bytes);
  }

  #finish(): void {
    if (this.#unfinished.length === 0) return;
    const rest = this.#unfinished;
    this.#unfinished = Buffer.alloc(0);
    this.#write(rest, true);
  }
}

const property = (releaseEarly: boolean) =>
  fc.asyncProperty(fc.array(stepArbitrary, { minLength: 3, maxLength: 30 }), async (steps) => {
    await using lab = await RelayLab.start({ heldBytesMax });
    const run = await Run.start(lab, releaseEarly);
    for (const step of steps) await run.step(step);
    await run.end();
  });

test('no frame leaves before its acknowledgement, none is lost, doubled or out of order', async () => {
  await fc.assert(property(false), { numRuns: 80 });
  expect(native.debugCounters()).toEqual({ threads: 0, engines: 0, descriptors: 0 });
});

test('a release before the acknowledgement is noticed', async () => {
  await expect(fc.assert(property(true), { numRuns: 80, endOnFailure: true })).rejects.toThrow(
    /Property failed/,
  );
});
