/**
 * The gate of two chained filters, against a model of QEMU's filter-buffer:
 * packets meet the filter created last first; `off` flushes into the next one.
 */
import { describe, expect, it } from 'vitest';
import { FilterBufferGate } from '../../lib/output/filter-buffer.js';
import { NoGate } from '../../lib/output/gate.js';
import type { QmpClient } from '../../lib/qmp/client.js';

interface Filter {
  readonly id: string;
  readonly netdev: string;
  on: boolean;
  held: string[];
}

interface Command {
  readonly execute: string;
  readonly arguments?: Record<string, unknown>;
}

class FakeQemu {
  /** In the order in which packets meet them. */
  filters: Filter[] = [];
  readonly left: string[] = [];
  readonly commands: string[] = [];
  /** Fails the command with this number. */
  failAt = -1;

  guestSends(netdev: string, ...packets: string[]): void {
    for (const packet of packets) this.#pass(packet, netdev, 0);
  }

  get client(): QmpClient {
    const execute = async (name: string, args?: Record<string, unknown>): Promise<unknown> =>
      this.#run({ execute: name, ...(args === undefined ? {} : { arguments: args }) });
    const pipeline = (requests: readonly Command[]): Promise<unknown>[] =>
      requests.map(async (request) => this.#run(request));
    return { execute, pipeline } as unknown as QmpClient;
  }

  run(commands: readonly unknown[]): void {
    for (const command of commands) this.#run(command as Command);
  }

  #pass(packet: string, netdev: string, from: number): void {
    const filter = this.filters.slice(from).find((each) => each.netdev === netdev && each.on);
    if (filter === undefined) this.left.push(packet);
    else filter.held.push(packet);
  }

  #flush(filter: Filter): void {
    const next = this.filters.indexOf(filter) + 1;
    for (const packet of filter.held.splice(0)) this.#pass(packet, filter.netdev, next);
  }

  #run(command: Command): unknown {
    const args = command.arguments ?? {};
    const named = String(args.path ?? args.id ?? '').replace('/objects/', '');
    this.commands.push(`${command.execute} ${named} ${String(args.value ?? '')}`.trim());
    if (this.commands.length - 1 === this.failAt) throw new Error('refused');
    const filter = this.filters.find((each) => each.id === named);
    switch (command.execute) {
      case 'qom-list':
        return this.filters.map((each) => ({ name: each.id, type: 'child<filter-buffer>' }));
      case 'object-add':
        if (filter !== undefined) throw new Error(`duplicate ${named}`);
        expect(args).toMatchObject({ 'qom-type': 'filter-buffer', queue: 'rx', interval: 4_294_967_295 });
        this.filters.unshift({ id: named, netdev: String(args.netdev), on: true, held: [] });
        return {};
      case 'qom-set':
        if (filter === undefined) throw new Error(`no ${named}`);
        if (filter.on && args.value === 'off') {
          filter.on = false;
          this.#flush(filter);
        } else if (args.value === 'on') filter.on = true;
        return {};
      case 'object-del':
        if (filter === undefined) throw new Error(`no ${named}`);
        this.#flush(filter);
        this.filters = this.filters.filter((each) => each !== filter);
        return {};
      default:
        throw new Error(command.execute);
    }
  }
}

const installed = async (netdevs = ['net0']): Promise<{ qemu: FakeQemu; gate: FilterBufferGate }> => {
  const qemu = new FakeQemu();
  const gate = new FilterBufferGate(netdevs);
  await gate.install(qemu.client);
  return { qemu, gate };
};

describe('filter-buffer gate', () => {
  it('lets everything pass until it is installed', async () => {
    const qemu = new FakeQemu();
    const gate = new FilterBufferGate(['net0']);
    expect(gate.boundaryCommands()).toEqual([]);
    qemu.guestSends('net0', 'a');
    await gate.release(qemu.client);
    expect(qemu.left).toEqual(['a']);
    expect(qemu.commands).toEqual([]);
    expect(gate.installed).toBe(false);
  });

  it('releases exactly the epoch before the boundary, in order', async () => {
    const { qemu, gate } = await installed();
    qemu.guestSends('net0', 'a1', 'a2');
    qemu.run(gate.boundaryCommands());
    qemu.guestSends('net0', 'b1');
    expect(qemu.left).toEqual([]);
    await gate.release(qemu.client);
    expect(qemu.left).toEqual(['a1', 'a2']);
    qemu.guestSends('net0', 'b2');
    qemu.run(gate.boundaryCommands());
    qemu.guestSends('net0', 'c1');
    await gate.release(qemu.client);
    expect(qemu.left).toEqual(['a1', 'a2', 'b1', 'b2']);
  });

  it('keeps an epoch that was given up for the next release', async () => {
    const { qemu, gate } = await installed();
    qemu.guestSends('net0', 'a');
    qemu.run(gate.boundaryCommands()); // this epoch was aborted
    qemu.guestSends('net0', 'b');
    qemu.run(gate.boundaryCommands());
    qemu.guestSends('net0', 'c');
    await gate.release(qemu.client);
    expect(qemu.left).toEqual(['a', 'b']);
  });

  it('opens in order, and leaves QEMU as it was', async () => {
    const { qemu, gate } = await installed(['net0', 'net1']);
    qemu.guestSends('net0', 'a');
    qemu.run(gate.boundaryCommands());
    qemu.guestSends('net0', 'b');
    qemu.guestSends('net1', 'x');
    await gate.open(qemu.client);
    expect(qemu.left).toEqual(['a', 'b', 'x']);
    expect(qemu.filters).toEqual([]);
    expect(gate.installed).toBe(false);
    qemu.guestSends('net0', 'c');
    expect(qemu.left).toEqual(['a', 'b', 'x', 'c']);
  });

  it('does all that for each backend', async () => {
    const { qemu, gate } = await installed(['net0', 'net1']);
    qemu.guestSends('net1', 'x1');
    qemu.guestSends('net0', 'a1');
    qemu.run(gate.boundaryCommands());
    qemu.guestSends('net1', 'x2');
    await gate.release(qemu.client);
    expect([...qemu.left].sort()).toEqual(['a1', 'x1']);
  });

  it('adopts what an earlier run left, with what it holds', async () => {
    const { qemu } = await installed();
    qemu.guestSends('net0', 'a');
    const next = new FilterBufferGate(['net0']);
    expect(await next.adopt(qemu.client)).toBe(true);
    expect(next.installed).toBe(true);
    qemu.guestSends('net0', 'b');
    expect(qemu.left).toEqual([]);
    qemu.run(next.boundaryCommands());
    await next.release(qemu.client);
    expect(qemu.left).toEqual(['a', 'b']);
    expect(await new FilterBufferGate(['net0']).adopt(new FakeQemu().client)).toBe(false);
  });

  it('holds after adoption, wherever in its commands the earlier run died', async () => {
    // Every prefix of: install, boundary, release.
    for (let died = 1; died <= 6; died += 1) {
      const { qemu, gate } = { qemu: new FakeQemu(), gate: new FilterBufferGate(['net0']) };
      qemu.failAt = died;
      const life = async (): Promise<void> => {
        await gate.install(qemu.client);
        qemu.guestSends('net0', 'a');
        qemu.run(gate.boundaryCommands());
        qemu.guestSends('net0', 'b');
        const [off, on] = [0, 1];
        for (const value of [off, on]) {
          qemu.run([
            {
              execute: 'qom-set',
              arguments: { path: '/objects/holdfast-f2-net0', value: value === on ? 'on' : 'off' },
            },
          ]);
        }
      };
      await life().catch(() => {});
      qemu.failAt = -1;
      const leftBefore = qemu.left.length;
      const next = new FilterBufferGate(['net0']);
      expect(await next.adopt(qemu.client)).toBe(true);
      qemu.guestSends('net0', 'held');
      expect(qemu.left.slice(leftBefore), `died at command ${died}`).toEqual([]);
      qemu.run(next.boundaryCommands());
      qemu.guestSends('net0', 'later');
      await next.release(qemu.client);
      expect(qemu.left.at(-1)).toBe('held');
    }
  });

  it('refuses to adopt what it cannot have left', async () => {
    const { qemu } = await installed();
    qemu.filters = qemu.filters.filter((filter) => !filter.id.includes('-f2-'));
    await expect(new FilterBufferGate(['net0']).adopt(qemu.client)).rejects.toThrow(/without/);
  });
});

describe('no gate', () => {
  it('holds nothing, and says so', async () => {
    const gate = new NoGate();
    expect(gate.installed).toBe(false);
    expect(gate.boundaryCommands()).toEqual([]);
    expect(await gate.adopt()).toBe(false);
  });
});
