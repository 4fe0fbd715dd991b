/**
 * One guest that moves between the hosts a and b, by either engine, as often as it is asked to. Where a
 * migration has left it, the next one begins; what ran it before is ended.
 *
 *   QEMU's engine      a QEMU with the same command line and -incoming defer waits on the other host
 *   Holdfast's         a backup waits there (bench/role.ts), starts its standby, and keeps watching the VM
 *
 * Both are driven by a process on the source's host (role.ts).
 */
import { createHash } from 'node:crypto';
import { mkdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import type { MigrationSettingsInput } from '../../lib/index.js';
import { QmpClient } from '../../lib/index.js';
import type { MigrationPolicyName } from '../../lib/migrate/policies.js';
import { diskPath } from '../../test/lab/disk.js';
import { type GuestOptions, guestArgs, guestReadyText, repositoryRoot } from '../../test/lab/guest.js';
import { JsonProcess } from '../../test/lab/json-process.js';
import type { Lab } from '../../test/lab/lab.js';
import { replicationLinks } from '../../test/lab/network.js';
import type { LabProcess } from '../../test/lab/process.js';
import { waitForText } from '../../test/lab/wait.js';
import { nodeFlags, spawnRole } from '../pair.js';
import type { MoveReport, QemuMove } from './role.js';

export type Engine = 'holdfast' | 'qemu';
export type MovingHost = 'a' | 'b';

export interface MoveSettings {
  readonly policy: MigrationPolicyName;
  readonly downtimeMs: number;
  readonly roundsMax: number;
  readonly timeMaxMs: number;
  /** Of Holdfast's engine alone. */
  readonly extra?: Partial<MigrationSettingsInput>;
}

export type Move = MoveReport & {
  /** Bytes that left the source's host over the replication link, headers and all; the same for both engines. */
  readonly linkBytes: number;
};

/** Where the guest runs, and how that is ended without it. */
interface Place {
  readonly host: MovingHost;
  readonly pid: number;
  readonly qmpPath: string;
  readonly serialPath: string;
  /** Settles when its process, and what watched it, have ended; what is left of it is removed. */
  readonly left: () => Promise<void>;
}

const addresses: Readonly<Record<MovingHost, string>> = {
  a: replicationLinks.aToB.from.address,
  b: replicationLinks.aToB.to.address,
};
const LINK = 'repl0';
const CONTROL_PORT = 7001;
const MOVE_SLACK_MS = 60_000;

const other = (host: MovingHost): MovingHost => (host === 'a' ? 'b' : 'a');

export class MovingGuest {
  readonly #lab: Lab;
  readonly #options: Omit<GuestOptions, 'serialPath'>;
  readonly #key: string;
  #place: Place;
  #places = 1;

  private constructor(lab: Lab, options: Omit<GuestOptions, 'serialPath'>, place: Place) {
    this.#lab = lab;
    this.#options = options;
    this.#key = createHash('sha256').update(lab.name).digest('hex');
    this.#place = place;
  }

  /** Boots it on host a. */
  static async boot(lab: Lab, options: Omit<GuestOptions, 'serialPath'>): Promise<MovingGuest> {
    const place = await startQemu(lab, 'a', 1, options, []);
    await waitForText(place.serialPath, guestReadyText, { timeoutMs: 60_000 });
    return new MovingGuest(lab, options, place);
  }

  get host(): MovingHost {
    return this.#place.host;
  }

  async move(engine: Engine, settings: MoveSettings): Promise<Move> {
    const before = await this.#sentBytes();
    const source = this.#place;
    const report = await (engine === 'qemu' ? this.#byQemu(settings) : this.#byHoldfast(settings));
    const linkBytes = (await this.#sentBytes(source.host)) - before;
    if (report.event === 'moved') await source.left();
    return { ...report, linkBytes };
  }

  async #byHoldfast({ extra = {}, ...settings }: MoveSettings): Promise<MoveReport> {
    const source = this.#place;
    const host = other(source.host);
    const id = ++this.#places;
    const lab = this.#lab;
    const serialPath = lab.path(`serial-${id}`);
    const backup = await spawnRole(lab.host(host), 'backup', {
      ...{ key: this.#key, name: `b${id}`, listen: `${addresses[host]}:${CONTROL_PORT}` },
      ...{ runDir: await this.#runDir(host), ramDir: lab.sharedMemoryDir },
      replace: [
        { from: source.serialPath, to: serialPath },
        ...(this.#options.disks ?? []).map((_, disk) => ({
          from: diskPath(lab, source.host, disk),
          to: diskPath(lab, host, disk),
        })),
      ],
      diskDir: lab.path(`disks-${host}`),
    });
    await backup.message('listening');
    const report = await this.#carryOut('holdfast', settings.timeMaxMs, {
      ...settings,
      ...extra,
      ...{ key: this.#key, name: `m${id}`, to: `${addresses[host]}:${CONTROL_PORT}`, qmp: source.qmpPath },
      runDir: await this.#runDir(source.host),
      ...(this.#options.disks === undefined
        ? {}
        : { moveDisks: 'on', diskDir: lab.path(`disks-${source.host}`) }),
    });
    if (report.event === 'stayed') {
      backup.say('close');
      await backup.process.exited;
      return report;
    }
    const { pid, qmp, loadMs } = await backup.message('took-over');
    const left = async (): Promise<void> => {
      await backup.ended(); // its VM has
    };
    this.#place = { host, pid: Number(pid), qmpPath: String(qmp), serialPath, left };
    return { ...report, parts: { ...report.parts, standbyLoadMs: Number(loadMs) } };
  }

  async #byQemu({ extra: _extra, ...settings }: MoveSettings): Promise<MoveReport> {
    const source = this.#place;
    const host = other(source.host);
    const there = await startQemu(this.#lab, host, ++this.#places, this.#options, ['-incoming', 'defer']);
    const move: QemuMove = {
      ...settings,
      ...{ qmp: source.qmpPath, targetQmp: there.qmpPath, address: addresses[host] },
    };
    const report = await this.#carryOut('qemu', settings.timeMaxMs, move);
    if (report.event === 'moved') this.#place = there;
    else await there.left();
    return report;
  }

  /** @throws Error if the migration failed by anything but its limits. */
  async #carryOut(engine: Engine, timeMaxMs: number, options: object): Promise<MoveReport> {
    const script = join(repositoryRoot(), 'dist/bench/migrate/role.js');
    const args = [...nodeFlags, script, engine, JSON.stringify(options)];
    const role = new JsonProcess(await this.#lab.host(this.#place.host).spawn(process.execPath, args));
    await role.ended(timeMaxMs + MOVE_SLACK_MS);
    const [said] = role.messages;
    if (said?.event === 'moved' || said?.event === 'stayed') return said as unknown as MoveReport;
    throw new Error(`a migration by ${engine}: ${said?.message ?? role.process.stderr.slice(-1_000)}`);
  }

  /** A tmpfs, as /run is. */
  async #runDir(host: MovingHost): Promise<string> {
    const dir = this.#lab.sharedMemoryPath(host);
    await mkdir(dir, { recursive: true, mode: 0o700 });
    return dir;
  }

  async #sentBytes(host: MovingHost = this.#place.host): Promise<number> {
    const { stdout } = await this.#lab.host(host).exec('cat', [`/sys/class/net/${LINK}/statistics/tx_bytes`]);
    return Number(stdout);
  }
}

const startQemu = async (
  lab: Lab,
  host: MovingHost,
  id: number,
  options: Omit<GuestOptions, 'serialPath'>,
  incoming: readonly string[],
): Promise<Place & { readonly process: LabProcess }> => {
  const [serialPath, qmpPath] = [lab.path(`serial-${id}`), lab.path(`qmp-${id}`)];
  const ramPath = lab.sharedMemoryPath(`ram-${id}`);
  const args = [
    ...guestArgs({ virtio: 'legacy', ...options, serialPath, qmpPath, ramPath }),
    // As Holdfast's standbys have it: one that has it sends no description, which another would wait for.
    ...['-machine', 'suppress-vmdesc=on'],
  ];
  const process = await lab.host(host).spawn('qemu-system-x86_64', [...args, ...incoming]);
  await (await QmpClient.connect(qmpPath)).close(); // it listens
  const left = async (): Promise<void> => {
    await process.kill();
    await rm(ramPath, { force: true });
  };
  return { host, pid: process.pid, qmpPath, serialPath, process, left };
};
