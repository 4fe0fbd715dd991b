/**
 * A guest with everything on a disk that is replicated: ext4, mounted with `discard`, on it redis with an
 * append-only file synced before each answer, SQLite, and files that are written, punched, truncated,
 * deleted and trimmed (diskchurn). After each takeover all of them are read back; in the end the guest is
 * reset, so that nothing counts but the disk, and its image is checked as a crash leaves it.
 */

import { killOrphan, otherHost, type RunningVm, serialPath } from '../e2e/support/lab.js';
import { checkImage, createDisk, diskPath, diskReplacements } from '../lab/disk.js';
import { guestArgs, guestReadyText } from '../lab/guest.js';
import { checkDiskchurn, rebootGuest } from '../lab/guest-shell.js';
import type { Lab } from '../lab/lab.js';
import type { SqliteRows } from '../lab/sqlite-load.js';
import { SqliteLoad, type SqliteLoadSummary } from '../lab/sqlite-load-process.js';
import { countInFile, waitFor, waitForText } from '../lab/wait.js';
import { PATIENCE_MS, RedisClients, type Service, type ServiceLoad } from './service.js';

const DISK_MIB = 256;
const RAM_MB = 192;
const CHURN_STEPS_PER_S = 25;
/** Rows inserted and more before the failure, and after it. */
const PROGRESS_ROWS = 5;

export class DiskService implements Service {
  readonly commandLine: readonly string[];
  readonly #lab: Lab;
  readonly #redis: RedisClients;
  /** As the last trial left them. */
  #rows: SqliteRows = { rows: 0, first: 0, last: 0 };

  constructor(lab: Lab) {
    this.#lab = lab;
    this.#redis = new RedisClients(lab);
    this.commandLine = [
      'qemu-system-x86_64',
      ...guestArgs({
        serialPath: serialPath(lab, 'a'),
        ramMb: RAM_MB,
        workload: 'disk',
        disks: [{ path: diskPath(lab, 'a') }],
        mountOptions: 'discard',
        churnStepsPerSecond: CHURN_STEPS_PER_S,
      }),
    ];
  }

  async boot(): Promise<undefined> {
    await createDisk(diskPath(this.#lab, 'a'), DISK_MIB);
  }

  async ready(): Promise<void> {
    await waitForText(serialPath(this.#lab, 'a'), guestReadyText, { timeoutMs: 2 * PATIENCE_MS });
  }

  primaryArgs(from: 'a' | 'b'): readonly string[] {
    return this.#diskDir(from);
  }

  backupArgs(to: 'a' | 'b'): readonly string[] {
    return [...diskReplacements(this.#lab, otherHost(to), to), ...this.#diskDir(to)];
  }

  async startLoad(): Promise<ServiceLoad> {
    const [redis, sqlite] = await Promise.all([
      this.#redis.startLoad(),
      SqliteLoad.start(this.#lab.client, { drainTimeoutMs: PATIENCE_MS }),
    ]);
    return {
      advance: async () => {
        await Promise.all([redis.advance(), sqlite.advance(PROGRESS_ROWS, { timeoutMs: PATIENCE_MS })]);
      },
      stop: async () => {
        const [counted, inserted] = await Promise.all([redis.stop(), sqlite.stop()]);
        return {
          acknowledged: counted.acknowledged + inserted.acknowledged,
          lost: counted.lost + inserted.lost,
          clientStallMs: counted.clientStallMs,
          violations: [
            ...counted.violations,
            ...inserted.violations.map((text) => `SQLite: ${text}`),
            ...this.#continuity(inserted),
            ...(await this.#files()),
          ],
        };
      },
    };
  }

  async finish(vm: RunningVm): Promise<readonly string[]> {
    const serial = serialPath(this.#lab, vm.host);
    const before = countInFile(serial, guestReadyText);
    await rebootGuest(this.#lab.client);
    await waitForText(serial, guestReadyText, { count: before + 1, timeoutMs: 2 * PATIENCE_MS });
    const load = await this.startLoad();
    const { violations } = await load.stop();
    await killOrphan(vm.pid);
    // Whoever serves its disk ends with it, and has written all of it then.
    await waitFor('all that ran the VM to end', () => this.#lab.host(vm.host).pids.length === 0);
    const image = await checkImage(this.#lab, diskPath(this.#lab, vm.host));
    return [
      ...violations.map((text) => `after a reset: ${text}`),
      ...(image.clean ? [] : [`the file system is damaged: ${image.report}`]),
      ...(image.rows?.last === this.#rows.last
        ? []
        : [`the image has rows up to ${image.rows?.last}, not ${this.#rows.last}`]),
    ];
  }

  /** Where a host keeps what it knows of its disks: it outlives all daemons. */
  #diskDir(host: 'a' | 'b'): string[] {
    return ['--disk-dir', this.#lab.path(`disks-${host}`)];
  }

  /** Read from the disk, past the guest's page cache. */
  async #files(): Promise<string[]> {
    const { errors } = await checkDiskchurn(this.#lab.client);
    return errors === 0 ? [] : [`${errors} blocks of files are not what the guest wrote`];
  }

  #continuity({ begun, found }: SqliteLoadSummary): string[] {
    const { first, last } = this.#rows;
    if (found !== null) this.#rows = found;
    if (begun.first === first && begun.last === last) return [];
    return [`the rows were ${begun.first} to ${begun.last}, the last trial left ${first} to ${last}`];
  }
}
