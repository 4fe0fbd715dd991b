/**
 * Protects a guest that verifies its own memory, kills it, and checks that what the backup runs goes on from
 * there: every page it reads must be what it last wrote.
 */

import { expect } from 'vitest';
import { Backup, killVm, Primary, QmpClient, type TakeoverReport } from '../../../lib/index.js';
import { identifyProcess, type ProcessIdentity } from '../../../lib/vm/process.js';
import type { Lab } from '../../lab/lab.js';
import { countInFile } from '../../lab/wait.js';
import { type MemoryGuest, writerProgress } from './memory-guest.js';

const EPOCHS_BEFORE_KILL = 40;
const key = new TextEncoder().encode('memory-failover-test-key');

export interface RunningVm {
  readonly qmpPath: string;
  readonly ramPath: string;
  readonly serialPath: string;
  readonly identity: ProcessIdentity;
}

export interface FailOverOptions
  extends Pick<
    Parameters<typeof Primary.start>[0],
    'captureMode' | 'deviceState' | 'sender' | 'streams' | 'verify'
  > {
  /** Of the backup's run directory, and of what it is called. */
  readonly name: string;
  /** Pages that memwriter goes over in turn. */
  readonly workingSetPages: number;
  /** Where the replica is made, default the lab's tmpfs directory. */
  readonly ramDir?: string;
}

export const runningVm = async (guest: MemoryGuest): Promise<RunningVm> => ({
  qmpPath: guest.qmpPath,
  ramPath: guest.ramPath,
  serialPath: guest.serialPath,
  identity: await identifyProcess(guest.process.pid),
});

/** Backups that were started, and VMs that they run: those live outside the lab's namespaces. */
export class FailoverChain implements AsyncDisposable {
  readonly backups: Backup[] = [];
  readonly #lab: Lab;
  readonly #resumed: ProcessIdentity[] = [];

  constructor(lab: Lab) {
    this.#lab = lab;
  }

  /** Protects the VM, kills it after some epochs, and returns the one that the backup runs. */
  async failOver(vm: RunningVm, options: FailOverOptions): Promise<RunningVm> {
    const { name, workingSetPages, ramDir = this.#lab.sharedMemoryDir, ...settings } = options;
    const runDir = this.#lab.path(name);
    const serialPath = `${vm.serialPath}-${name}`;
    const backup = await Backup.start({
      key,
      listen: '127.0.0.1:0',
      name: `${name}-backup`,
      runDir,
      ramDir,
      replace: [{ from: vm.serialPath, to: serialPath }],
    });
    this.backups.push(backup);
    const tookOver = new Promise<TakeoverReport>((resolve, reject) => {
      backup.once('took-over', resolve);
      backup.once('takeover-failed', reject);
    });
    const primary = await Primary.start({
      key,
      qmp: vm.qmpPath,
      backup: `127.0.0.1:${backup.port}`,
      name: `${name}-primary`,
      runDir,
      intervalMs: 20,
      heartbeatTimeoutMs: 5_000, // the test shares both sides' event loop; the kill is noticed by QMP
      ...settings,
    });
    await primary.protectedOnce();
    let epochs = 0;
    for await (const { epoch } of primary.epochs()) {
      expect(epoch).toBeGreaterThan(0);
      if (++epochs === EPOCHS_BEFORE_KILL) break;
    }
    const before = await writerProgress(vm.ramPath, 100);
    const acknowledged = primary.status().committedEpoch + 2; // one that begins after this report was written
    for await (const { epoch } of primary.epochs()) if (epoch >= acknowledged) break;
    const { replica = '' } = backup.status();
    await killVm(vm.identity);
    const takeover = await tookOver;
    const identity = await identifyProcess(takeover.pid);
    this.#resumed.push(identity);
    expect(await primary.ended).toMatchObject({ kind: 'vm-lost' });
    expect(takeover.epoch).toBeGreaterThanOrEqual(acknowledged);

    // Each page of the working set once, and then once more after it was written here.
    const after = await writerProgress(replica, 2 * workingSetPages);
    expect(after.errors).toBe(0);
    expect(after.written).toBeGreaterThan(before.written);
    expect(countInFile(serialPath, 'ERROR')).toBe(0);
    // With x-ignore-shared left on, the operator's next ordinary migration would lose the RAM.
    await using qmp = await QmpClient.connect(takeover.qmp);
    const capabilities = await qmp.execute('query-migrate-capabilities');
    expect(capabilities.filter(({ state }) => state)).toEqual([]);
    return { qmpPath: takeover.qmp, ramPath: replica, serialPath, identity };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const vm of this.#resumed.splice(0)) await killVm(vm);
    for (const backup of this.backups.splice(0)) await backup.close();
  }
}
