/**
 * The gate made of two chained `filter-buffer` objects per network backend, on
 * stock QEMU, added and removed at run time (DESIGN part 4, guest output).
 *
 * `queue=rx` is what the backend receives: the guest's output. Filters of one
 * backend are met in reverse order of their creation for rx, so f2 is created
 * first and packets meet f1 first. Turning a filter off flushes it to the next
 * one; turning it on again makes it hold. The interval is never used (0 is
 * refused by QEMU, so it is the largest).
 *
 * Limits of QEMU's: a filter holds 10,000 packets, then drops silently; vhost
 * and multiqueue backends are refused. Flushing while the VM is stopped
 * delivers nothing until it runs.
 */
import { QmpError } from '../errors.js';
import type { QmpClient } from '../qmp/client.js';
import type { QmpRequest } from '../qmp/commands.js';
import type { GateStats, OutputGate } from './gate.js';

const INTERVAL_NEVER = 4_294_967_295;

const runningFilter = (netdev: string): string => `holdfast-f1-${netdev}`;
const pendingFilter = (netdev: string): string => `holdfast-f2-${netdev}`;

const addFilter = (id: string, netdev: string): QmpRequest => ({
  execute: 'object-add',
  arguments: { 'qom-type': 'filter-buffer', id, netdev, queue: 'rx', interval: INTERVAL_NEVER },
});

const setStatus = (id: string, status: 'on' | 'off'): QmpRequest => ({
  execute: 'qom-set',
  arguments: { path: `/objects/${id}`, property: 'status', value: status },
});

export class FilterBufferGate implements OutputGate {
  readonly kind = 'filter-buffer';
  readonly seesOutput = false;
  readonly #netdevs: readonly string[];
  #installed = false;

  /** @param netdevs ids of the guest's network backends (`-netdev …,id=`). */
  constructor(netdevs: readonly string[]) {
    this.#netdevs = netdevs;
  }

  get installed(): boolean {
    return this.#installed;
  }

  /** Whether an earlier run of ours left filters in QEMU. */
  async isPresent(qmp: QmpClient): Promise<boolean> {
    return (await this.#present(qmp)).size > 0;
  }

  async adopt(qmp: QmpClient): Promise<boolean> {
    const present = await this.#present(qmp);
    if (present.size === 0) return false;
    for (const netdev of this.#netdevs) {
      // A run that died between two commands left a half: complete it. f1 alone
      // can't be (f2 is created first); f2 alone held nothing or is flushed into.
      if (!present.has(pendingFilter(netdev))) {
        if (present.has(runningFilter(netdev))) {
          throw new QmpError(`QEMU has ${runningFilter(netdev)} without ${pendingFilter(netdev)}`, {
            cure: `Remove it with object-del ${runningFilter(netdev)}; its held output leaves.`,
          });
        }
        await run(qmp, addFilter(pendingFilter(netdev), netdev));
      }
      if (!present.has(runningFilter(netdev))) await run(qmp, addFilter(runningFilter(netdev), netdev));
      // A run that died between off and on left f1 passing into f2, which still holds.
      await run(qmp, setStatus(runningFilter(netdev), 'on'));
      await run(qmp, setStatus(pendingFilter(netdev), 'on'));
    }
    this.#installed = true;
    return true;
  }

  async install(qmp: QmpClient): Promise<void> {
    if (this.#installed) return;
    for (const netdev of this.#netdevs) {
      await run(qmp, addFilter(pendingFilter(netdev), netdev));
      await run(qmp, addFilter(runningFilter(netdev), netdev));
    }
    this.#installed = true;
  }

  boundaryCommands(): readonly QmpRequest[] {
    if (!this.#installed) return [];
    return this.#netdevs.flatMap((netdev) => [
      setStatus(runningFilter(netdev), 'off'),
      setStatus(runningFilter(netdev), 'on'),
    ]);
  }

  /** Done by its commands. */
  async boundary(): Promise<void> {}

  async release(qmp: QmpClient): Promise<void> {
    if (!this.#installed) return;
    const commands = this.#netdevs.flatMap((netdev) => [
      setStatus(pendingFilter(netdev), 'off'),
      setStatus(pendingFilter(netdev), 'on'),
    ]);
    await Promise.all(qmp.pipeline(commands));
  }

  async open(qmp: QmpClient): Promise<void> {
    const present = await this.#present(qmp);
    for (const netdev of this.#netdevs) {
      const [running, pending] = [runningFilter(netdev), pendingFilter(netdev)];
      // Oldest output first: empty f2 and let it pass, then f1 through it.
      if (present.has(pending)) await run(qmp, setStatus(pending, 'off'));
      if (present.has(running)) {
        await run(qmp, setStatus(running, 'off'));
        await run(qmp, { execute: 'object-del', arguments: { id: running } });
      }
      if (present.has(pending)) await run(qmp, { execute: 'object-del', arguments: { id: pending } });
    }
    this.#installed = false;
  }

  /** QEMU tells nobody what its filters hold. */
  onOutput(): void {}

  stats(): GateStats | undefined {
    return undefined;
  }

  async close(): Promise<void> {}

  async #present(qmp: QmpClient): Promise<Set<string>> {
    const objects = await qmp.execute('qom-list', { path: '/objects' });
    return new Set(objects.map((object) => object.name).filter((name) => name.startsWith('holdfast-f')));
  }
}

const run = async (qmp: QmpClient, command: QmpRequest): Promise<unknown> => {
  const [answer] = qmp.pipeline([command]);
  return await answer;
};
