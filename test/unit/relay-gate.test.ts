/** The relay gate over relays that are objects here: what is asked of them, and what their deaths cost. */
import { describe, expect, it } from 'vitest';
import { PeerLostError, RelayError } from '../../lib/errors.js';
import { NOTHING_LOGGED } from '../../lib/log.js';
import type { RelayControl } from '../../lib/output/relay-control.js';
import type { VmRelay } from '../../lib/output/relay-files.js';
import { RelayGate } from '../../lib/output/relay-gate.js';
import { identifyProcess } from '../../lib/vm/process.js';

/** One relay's process: frames in, frames out. */
class FakeRelay {
  readonly left: string[] = [];
  holding: boolean;
  readonly #running: string[] = [];
  readonly #before: string[] = [];
  #seen = false;
  #controls: FakeControl[] = [];

  constructor(holding: boolean) {
    this.holding = holding;
  }

  guestSends(...frames: string[]): void {
    if (!this.holding) {
      this.left.push(...frames);
      return;
    }
    this.#running.push(...frames);
    if (this.#seen) return;
    this.#seen = true;
    for (const control of this.#controls) control.output();
  }

  connect(): FakeControl {
    for (const control of this.#controls.splice(0)) control.lose();
    const control = new FakeControl(this);
    this.#controls.push(control);
    return control;
  }

  do(request: string): number {
    switch (request) {
      case 'hold':
        this.holding = true;
        return this.#running.length;
      case 'boundary':
        this.#before.push(...this.#running.splice(0));
        this.#seen = false;
        return this.#before.length;
      case 'release':
        this.left.push(...this.#before.splice(0));
        return 0;
      case 'open':
        this.holding = false;
        this.left.push(...this.#before.splice(0), ...this.#running.splice(0));
        return 0;
      default:
        return 0;
    }
  }

  die(): void {
    for (const control of this.#controls.splice(0)) control.lose();
  }
}

class FakeControl {
  readonly asked: string[] = [];
  readonly closed: Promise<Error>;
  isClosed = false;
  /** Ends the connection instead of answering. */
  dieAt: string | undefined;
  readonly #relay: FakeRelay;
  #settle: (reason: Error) => void = () => {};
  #listener: () => void = () => {};

  constructor(relay: FakeRelay) {
    this.#relay = relay;
    this.closed = new Promise((resolve) => {
      this.#settle = resolve;
    });
  }

  get holding(): boolean {
    return this.#relay.holding;
  }
  hold = (): Promise<number> => this.#ask('hold');
  prepare = (): Promise<number> => this.#ask('prepare');
  boundary = (): Promise<number> => this.#ask('boundary');
  release = (): Promise<number> => this.#ask('release');
  open = (): Promise<number> => this.#ask('open');
  stats = async (): Promise<object> => ({
    ...{ heldFrames: 1, heldBytes: 100, heldBytesPeak: 200, stalls: 2, stalledMs: 3, droppedFrames: 4 },
  });
  onOutput(listener: () => void): void {
    this.#listener = listener;
  }
  output(): void {
    this.#listener();
  }
  lose(): void {
    if (this.isClosed) return;
    this.isClosed = true;
    this.#settle(new PeerLostError('the relay is gone'));
  }
  async close(): Promise<void> {
    this.lose();
  }

  async #ask(request: string): Promise<number> {
    if (this.dieAt === request) this.lose();
    if (this.isClosed) throw new PeerLostError('the relay is gone');
    this.asked.push(request);
    return this.#relay.do(request);
  }
}

interface Stage {
  readonly gate: RelayGate;
  /** By netdev: every relay that was reached, the latest last. */
  readonly relays: Map<string, FakeRelay[]>;
  readonly controls: Map<string, FakeControl[]>;
  readonly held: Set<string>;
  /** The next attempts to reach a relay fail. */
  failures: number;
}

const stage = async (
  netdevs: readonly string[],
  options: { holding?: readonly string[] } = {},
): Promise<Stage> => {
  const vm = await identifyProcess(process.pid);
  const relays = new Map(netdevs.map((id) => [id, [new FakeRelay(options.holding?.includes(id) ?? false)]]));
  const controls = new Map<string, FakeControl[]>(netdevs.map((id) => [id, []]));
  const held = new Set<string>();
  const dead = new Set<FakeRelay>();
  const result: { failures: number } & Omit<Stage, 'failures'> = {
    ...{ relays, controls, held, failures: 0 },
    gate: new RelayGate({
      relays: netdevs.map(
        (netdev): VmRelay => ({
          ...{ netdev, socket: netdev, control: netdev, target: { tap: 'tap0' }, heldBytesMax: 1 << 20, vm },
        }),
      ),
      log: NOTHING_LOGGED,
      want: async (socket, wanted) => {
        if (wanted) held.add(socket);
        else held.delete(socket);
      },
      reach: async ({ netdev }) => {
        if (result.failures > 0) {
          result.failures -= 1;
          throw new RelayError('it does not start');
        }
        const all = relays.get(netdev)!;
        const last = controls.get(netdev)!.at(-1);
        // A connection that ended means that its process did: another one is started, and reads what is wanted.
        if (last?.isClosed && !dead.has(all.at(-1)!)) {
          dead.add(all.at(-1)!);
          all.push(new FakeRelay(held.has(netdev)));
        }
        const control = all.at(-1)!.connect();
        controls.get(netdev)!.push(control);
        return control as unknown as RelayControl;
      },
    }),
  };
  await result.gate.adopt();
  return result;
};

const relayOf = ({ relays }: Stage, netdev = 'net0'): FakeRelay => relays.get(netdev)!.at(-1)!;

describe('relay gate', () => {
  it('passes everything until it is installed, and then holds', async () => {
    const on = await stage(['net0']);
    expect(on.gate.installed).toBe(false);
    relayOf(on).guestSends('a');
    await on.gate.prepare();
    await on.gate.boundary();
    await on.gate.release();
    expect(on.controls.get('net0')![0]!.asked).toEqual([]);
    await on.gate.install();
    expect(on.gate.installed).toBe(true);
    expect(on.held).toEqual(new Set(['net0']));
    relayOf(on).guestSends('b');
    expect(relayOf(on).left).toEqual(['a']);
  });

  it('releases what was before the last boundary, for each backend', async () => {
    const on = await stage(['net0', 'net1']);
    await on.gate.install();
    relayOf(on, 'net0').guestSends('a1');
    relayOf(on, 'net1').guestSends('x1');
    await on.gate.prepare();
    await on.gate.boundary();
    relayOf(on, 'net0').guestSends('a2');
    await on.gate.release();
    expect(relayOf(on, 'net0').left).toEqual(['a1']);
    expect(relayOf(on, 'net1').left).toEqual(['x1']);
    await on.gate.open();
    expect(relayOf(on, 'net0').left).toEqual(['a1', 'a2']);
    expect(on.gate.installed).toBe(false);
    expect(on.held).toEqual(new Set());
  });

  it('tells of output once per epoch, whichever backend it comes from', async () => {
    const on = await stage(['net0', 'net1']);
    let told = 0;
    on.gate.onOutput(() => {
      told += 1;
    });
    await on.gate.install();
    relayOf(on, 'net0').guestSends('a');
    relayOf(on, 'net1').guestSends('x', 'y');
    expect(told).toBe(1);
    await on.gate.boundary();
    relayOf(on, 'net1').guestSends('z');
    expect(told).toBe(2);
  });

  it('adopts relays that hold, and then all of them must', async () => {
    const on = await stage(['net0', 'net1'], { holding: ['net1'] });
    expect(on.gate.installed).toBe(true);
    relayOf(on, 'net0').guestSends('a');
    expect(relayOf(on, 'net0').left).toEqual([]);
    expect((await stage(['net0'])).gate.installed).toBe(false);
  });

  it('adds up what the relays count', async () => {
    const { gate } = await stage(['net0', 'net1']);
    expect(gate.stats()).toEqual({
      ...{
        heldFrames: 2,
        heldBytes: 200,
        heldBytesMax: 400,
        backPressure: 4,
        stalledMs: 6,
        droppedFrames: 8,
      },
    });
  });
});

describe('a relay that dies', () => {
  it('is replaced by one that holds from its first frame on', async () => {
    const on = await stage(['net0']);
    await on.gate.install();
    relayOf(on).guestSends('lost');
    const old = relayOf(on);
    old.die();
    await on.gate.boundary(); // waits for the new one
    expect(relayOf(on)).not.toBe(old);
    relayOf(on).guestSends('a');
    await on.gate.release();
    expect(relayOf(on).left).toEqual([]);
    await on.gate.boundary();
    await on.gate.release();
    expect(relayOf(on).left).toEqual(['a']);
    expect(old.left).toEqual([]);
  });

  it('in the middle of a boundary, is asked for it once more', async () => {
    const on = await stage(['net0']);
    await on.gate.install();
    on.controls.get('net0')!.at(-1)!.dieAt = 'boundary';
    await on.gate.boundary();
    expect(on.controls.get('net0')!.at(-1)!.asked).toEqual(['hold', 'boundary']);
  });

  it('holds back no release: what it held is gone', async () => {
    const on = await stage(['net0', 'net1']);
    await on.gate.install();
    relayOf(on, 'net1').guestSends('x');
    await on.gate.boundary();
    on.controls.get('net0')!.at(-1)!.dieAt = 'release';
    await on.gate.release();
    expect(relayOf(on, 'net1').left).toEqual(['x']);
  });

  it('while nothing is held, is replaced by one that passes', async () => {
    const on = await stage(['net0']);
    relayOf(on).die();
    await on.gate.open();
    relayOf(on).guestSends('a');
    expect(relayOf(on).left).toEqual(['a']);
    expect(on.relays.get('net0')).toHaveLength(2);
  });

  it('and cannot be replaced, fails the pause; the next pause tries again', async () => {
    const on = await stage(['net0']);
    await on.gate.install();
    on.failures = 3;
    relayOf(on).die();
    await expect(on.gate.boundary()).rejects.toThrow(
      /netdev net0 .* could not be replaced: it does not start/,
    );
    await on.gate.boundary();
    expect(relayOf(on).holding).toBe(true);
  });

  it('with its VM, or after the gate was closed, is not replaced', async () => {
    const on = await stage(['net0']);
    await on.gate.close();
    relayOf(on).die();
    await new Promise((resolve) => setImmediate(resolve));
    expect(on.controls.get('net0')).toHaveLength(1);
  });
});
