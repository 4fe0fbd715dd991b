/** The plug gate over a model of the kernel's sch_plug: nothing leaves early, nothing is left behind. */
import fc from 'fast-check';
import { describe, expect, it, vi } from 'vitest';
import type { Plug, PlugBinding, PlugOptions, PlugStats } from '../../lib/output/plug-binding.js';
import { PlugGate } from '../../lib/output/plug-gate.js';

/** net/sched/sch_plug.c by its counters, one frame a byte; outlives the process that installed it. */
class Kernel {
  installed = false;
  dropped = 0;
  readonly left: number[] = [];
  #queue: number[] = [];
  #current = 0;
  #last = 0;
  #limit = Number.POSITIVE_INFINITY;
  readonly failures: string[] = [];

  send(frame: number): void {
    if (!this.installed) this.left.push(frame);
    else if (this.#queue.length >= this.#limit) this.dropped += 1;
    else {
      this.#queue.push(frame);
      this.#current += 1;
    }
  }

  get native(): Pick<PlugBinding, 'Plug'> {
    const kernel = this;
    return {
      Plug: class implements Plug {
        readonly #limit: number;
        constructor({ heldBytesMax }: PlugOptions) {
          this.#limit = heldBytesMax;
        }
        async adopt() {
          return kernel.installed;
        }
        async install() {
          kernel.#begin(this.#limit);
        }
        async buffer() {
          return kernel.#change('buffer', () => {
            kernel.#last = kernel.#current;
            kernel.#current = 0;
          });
        }
        async releaseOne() {
          return kernel.#change('releaseOne', () => {
            kernel.left.push(...kernel.#queue.splice(0, kernel.#last));
            kernel.#last = 0;
          });
        }
        async remove() {
          kernel.left.push(...kernel.#queue.splice(0));
          kernel.installed = false;
        }
        async close() {}
      },
    };
  }

  #begin(limit: number): void {
    this.installed = true;
    this.#limit = limit;
    this.#current = 0;
    this.#last = 0;
  }

  #change(what: string, how: () => void): PlugStats {
    const before = {
      heldFrames: this.#queue.length,
      heldBytes: this.#queue.length,
      droppedFrames: this.dropped,
    };
    if (this.failures[0] === what) {
      this.failures.shift();
      throw Object.assign(new Error(`${what} failed`), { code: 'HOLDFAST_E_SYSCALL', errno: 105 });
    }
    how();
    return before;
  }
}

const warn = vi.fn();
const gateOver = (kernel: Kernel, heldBytesMax?: number): PlugGate =>
  new PlugGate({
    native: kernel.native,
    taps: ['tap0'],
    log: { warn },
    ...(heldBytesMax === undefined ? {} : { heldBytesMax }),
  });

const protectedGate = async (kernel: Kernel, heldBytesMax?: number): Promise<PlugGate> => {
  const gate = gateOver(kernel, heldBytesMax);
  expect(await gate.adopt()).toBe(false);
  await gate.install();
  return gate;
};

describe('the plug gate', () => {
  it('holds an epoch until its release', async () => {
    const kernel = new Kernel();
    const gate = await protectedGate(kernel);
    kernel.send(1);
    await gate.boundary();
    kernel.send(2);
    expect(kernel.left).toEqual([]);
    await gate.release();
    expect(kernel.left).toEqual([1]);
    await gate.boundary();
    await gate.release();
    expect(kernel.left).toEqual([1, 2]);
  });

  it('after an epoch that was given up leaves out a boundary, and nothing lags behind', async () => {
    const kernel = new Kernel();
    const gate = await protectedGate(kernel);
    kernel.send(1);
    await gate.boundary(); // of the epoch that is given up
    kernel.send(2);
    await gate.boundary();
    kernel.send(3);
    await gate.release();
    expect(kernel.left).toEqual([1]);
    await gate.boundary();
    await gate.release();
    expect(kernel.left).toEqual([1, 2, 3]);
  });

  it('is needed: with every boundary passed on, the kernel leaves frames behind for ever', async () => {
    const kernel = new Kernel();
    const plug = new kernel.native.Plug({ taps: ['tap0'], heldBytesMax: 1_000 });
    await plug.install();
    kernel.send(1);
    await plug.buffer();
    for (let frame = 2; frame < 10; frame += 1) {
      kernel.send(frame);
      await plug.buffer();
      await plug.releaseOne();
      expect(kernel.left.at(-1)).toBe(frame - 1);
    }
  });

  it('adopts what an earlier process left, whose last release nobody knows of', async () => {
    for (const released of [true, false]) {
      const kernel = new Kernel();
      const before = await protectedGate(kernel);
      kernel.send(1);
      await before.boundary();
      if (released) await before.release();
      await before.close();
      kernel.send(2);
      const gate = gateOver(kernel);
      expect(await gate.adopt()).toBe(true);
      expect(gate.installed).toBe(true);
      for (let epoch = 0; epoch < 2; epoch += 1) {
        await gate.boundary();
        await gate.release();
      }
      expect(kernel.left).toEqual([1, 2]);
    }
  });

  it('opens: all leaves in order, and from then on it touches nothing', async () => {
    const kernel = new Kernel();
    const gate = await protectedGate(kernel);
    kernel.send(1);
    await gate.boundary();
    kernel.send(2);
    await gate.open();
    expect(gate.installed).toBe(false);
    kernel.send(3);
    await gate.boundary();
    await gate.release();
    expect(kernel.left).toEqual([1, 2, 3]);
  });

  it('counts what is held and what the kernel dropped, and warns of that', async () => {
    warn.mockClear();
    const kernel = new Kernel();
    const gate = await protectedGate(kernel, 3);
    for (let frame = 0; frame < 5; frame += 1) kernel.send(frame);
    await gate.boundary();
    expect(gate.stats()).toEqual({
      heldFrames: 3,
      heldBytes: 3,
      heldBytesMax: 3,
      droppedFrames: 2,
      backPressure: 0,
      stalledMs: 0,
    });
    expect(warn).toHaveBeenCalledOnce();
    expect(warn.mock.calls[0]![0]).toMatchObject({ droppedFrames: 2, taps: ['tap0'] });
    await gate.release();
    expect(warn).toHaveBeenCalledOnce();
  });

  it('says what fails, and goes on where it was', async () => {
    const kernel = new Kernel();
    const gate = await protectedGate(kernel);
    kernel.failures.push('buffer', 'releaseOne');
    kernel.send(1);
    await expect(gate.boundary()).rejects.toMatchObject({
      code: 'HOLDFAST_E_SYSCALL',
      message: 'gate: plug: buffer failed',
    });
    await expect(gate.release()).rejects.toMatchObject({ message: 'gate: plug: releaseOne failed' });
    for (let epoch = 0; epoch < 3; epoch += 1) {
      await gate.boundary();
      await gate.release();
    }
    expect(kernel.left).toEqual([1]);
  });

  it('does not wait for the calls before: release and boundary in one breath are in order', async () => {
    const kernel = new Kernel();
    const gate = await protectedGate(kernel);
    kernel.send(1);
    await gate.boundary();
    kernel.send(2);
    await Promise.all([gate.release(), gate.boundary()]);
    expect(kernel.left).toEqual([1]);
    await gate.release();
    expect(kernel.left).toEqual([1, 2]);
  });

  it('keeps output commit and order under any course of events', async () => {
    const event = fc.constantFrom(
      'send',
      'send',
      'send',
      'pause',
      'acknowledge',
      'give-up',
      'restart',
      'fail',
    );
    await fc.assert(
      fc.asyncProperty(fc.array(event, { maxLength: 60 }), async (events) => {
        const kernel = new Kernel();
        let gate = await protectedGate(kernel);
        let sent = 0;
        let inFlight: number | undefined; // frames that the epoch in flight explains
        let explained = 0;
        const acknowledge = async (): Promise<void> => {
          if (inFlight === undefined) return;
          explained = inFlight;
          inFlight = undefined;
          await gate.release().catch(() => {});
        };
        const pause = async (): Promise<void> => {
          if (inFlight !== undefined) return; // one epoch in flight
          // A failed boundary fails the capture, and with it the epoch.
          inFlight = await gate.boundary().then(
            () => sent,
            () => undefined,
          );
        };
        for (const name of events) {
          if (name === 'send') kernel.send(++sent);
          else if (name === 'pause') await pause();
          else if (name === 'acknowledge') await acknowledge();
          else if (name === 'give-up') inFlight = undefined;
          else if (name === 'fail') kernel.failures.splice(0, 1, sent % 2 === 0 ? 'buffer' : 'releaseOne');
          else {
            await gate.close();
            gate = gateOver(kernel);
            expect(await gate.adopt()).toBe(true);
            inFlight = undefined;
          }
          expect(kernel.left).toEqual(Array.from({ length: kernel.left.length }, (_, index) => index + 1));
          expect(kernel.left.length).toBeLessThanOrEqual(explained);
        }
        // Whatever happened: two epochs that go well, after a failure that was still to come, clear all.
        kernel.failures.splice(0);
        inFlight = undefined;
        for (let epoch = 0; epoch < 2; epoch += 1) {
          await pause();
          await acknowledge();
        }
        expect(kernel.left.length).toBe(sent);
      }),
      { numRuns: 500 },
    );
  });
});
