/**
 * Who is active in which term, on this host: one small JSON file per VM in the
 * run directory. It lets a restarted daemon know what it was, and a returning
 * primary be told that it has been superseded (one active side).
 *
 * The directory is a tmpfs (/run): a record says something about a QEMU that
 * runs on this boot of this host, and must not outlive it.
 */
import { mkdir, open, readdir, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { z } from 'zod';
import { isSameProcess, type ProcessIdentity } from '../vm/process.js';

const processIdentity = z.strictObject({ pid: z.number().int().positive(), startTicks: z.string() });
const checkpoint = { dir: z.string(), epoch: z.number().int() };

const record = z.strictObject({
  vmId: z.string(),
  vmName: z.string(),
  term: z.number().int().nonnegative(),
  /** active: runs the VM and may release output. standby: waits. superseded: must stay silent. */
  role: z.enum(['active', 'standby', 'superseded']),
  /** QEMU's process; the start time is against reuse of the id. */
  process: processIdentity,
  qmpPath: z.string(),
  ramPath: z.string(),
  /** Sockets of its disk servers, where a backup took it over: they may have to be told so once more. */
  disks: z.array(z.string()).optional(),
  /** A backup runs it, or ran it, before all of its memory was there: nobody has it as it was there any more. */
  lacksPages: z.boolean().optional(),
  /** With it: what this daemon goes on from should the pages not come. Nobody does once the daemon has ended. */
  fallsBackTo: z.strictObject({ ...checkpoint, daemon: processIdentity }).optional(),
  /**
   * A backup runs it, or ran it, from this checkpoint, for its source was lost before all of its memory had come.
   * Until its memory has come from there, too, it waits for this daemon, and would for ever once that has ended.
   */
  fellBackTo: z.strictObject({ ...checkpoint, daemon: processIdentity.optional() }).optional(),
  /** Where QEMU's engine is moving it to: if it stands still here, it may run there. */
  movingTo: z.string().optional(),
});
export type VmRecord = z.infer<typeof record>;

/** Its source has a copy of the VM, which must not go on without its operator's word. */
export const outlivesItsVm = ({ lacksPages, fellBackTo }: VmRecord): boolean =>
  lacksPages === true || fellBackTo !== undefined;

export class VmRecords {
  readonly #directory: string;
  readonly #writer: string;

  /** @param writer keeps the records of a primary and of a backup that share a run directory apart. */
  constructor(runDir: string, writer: 'primary' | 'backup') {
    this.#directory = join(runDir, 'vms');
    this.#writer = writer;
  }

  /** A record that keeps a source from going on is on the disk when this settles, should the directory lie on one. */
  async write(value: VmRecord): Promise<void> {
    await mkdir(this.#directory, { recursive: true, mode: 0o700 });
    const path = this.#path(value.vmId);
    const temporary = `${path}.${process.pid}`;
    await writeFile(temporary, `${JSON.stringify(value, null, 2)}\n`, {
      mode: 0o600,
      flush: outlivesItsVm(value),
    });
    await rename(temporary, path); // a reader sees the old record or the new one
    if (outlivesItsVm(value)) await sync(this.#directory);
  }

  async read(vmId: string): Promise<VmRecord | undefined> {
    return await this.#load(this.#path(vmId));
  }

  async remove(vmId: string): Promise<void> {
    await rm(this.#path(vmId), { force: true });
  }

  /** As remove(), and on the disk when this settles, should the directory lie on one. */
  async forget(vmId: string): Promise<void> {
    await this.remove(vmId);
    await sync(this.#directory);
  }

  /** Of all writers. */
  async list(): Promise<readonly VmRecord[]> {
    return await this.#listOf('');
  }

  /** The record of a running QEMU, if it is one of ours. */
  async ofProcess(identity: ProcessIdentity): Promise<VmRecord | undefined> {
    return (await this.#allOf(identity))[0];
  }

  /**
   * Where a QEMU's VM was being moved to by a command that did not live to say how that ended. One that a backup
   * took over has a record of the backup's, too: hence all of them are looked at.
   */
  async movingTo(identity: ProcessIdentity): Promise<string | undefined> {
    return (await this.#allOf(identity)).find(({ movingTo }) => movingTo !== undefined)?.movingTo;
  }

  /** What this writer's records say of one process is true of another one from now on (holdfast handoff). */
  async moveTo(from: ProcessIdentity, to: ProcessIdentity): Promise<void> {
    const { pid, startTicks } = to;
    for (const value of await this.#listOf(this.#writer)) {
      if (isSameProcess(value.process, from)) await this.write({ ...value, process: { pid, startTicks } });
    }
  }

  async #allOf(identity: ProcessIdentity): Promise<readonly VmRecord[]> {
    return (await this.list()).filter(({ process }) => isSameProcess(process, identity));
  }

  async #listOf(writer: string): Promise<readonly VmRecord[]> {
    const names = await readdir(this.#directory).catch(() => [] as string[]);
    const files = names.filter((name) => name.startsWith(writer) && name.endsWith('.json'));
    const loaded = await Promise.all(files.map((name) => this.#load(join(this.#directory, name))));
    return loaded.filter((value) => value !== undefined);
  }

  #path(vmId: string): string {
    return join(this.#directory, `${this.#writer}-${vmId}.json`);
  }

  async #load(path: string): Promise<VmRecord | undefined> {
    const text = await readFile(path, 'utf8').catch(() => undefined);
    if (text === undefined) return undefined;
    try {
      return record.parse(JSON.parse(text));
    } catch {
      return undefined; // not ours, or of another version: as good as absent
    }
  }
}

const sync = async (directory: string): Promise<void> => {
  const handle = await open(directory, 'r');
  try {
    await handle.sync();
  } finally {
    await handle.close();
  }
};
