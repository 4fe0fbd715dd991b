/**
 * Who is active in which term, on this host: one small JSON file per VM in the
 * run directory. It lets a restarted daemon know what it was, and a returning
 * primary be told that it has been superseded (one active side).
 *
 * The directory is a tmpfs (/run): a record says something about a QEMU that
 * runs on this boot of this host, and must not outlive it.
 */
import { mkdir, readdir, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { z } from 'zod';

const record = z.strictObject({
  vmId: z.string(),
  vmName: z.string(),
  term: z.number().int().nonnegative(),
  /** active: runs the VM and may release output. standby: waits. superseded: must stay silent. */
  role: z.enum(['active', 'standby', 'superseded']),
  /** QEMU's process, with its start time (clock ticks since boot) against reuse of the id. */
  pid: z.number().int().nonnegative(),
  startTime: z.string(),
  qmpPath: z.string(),
  ramPath: z.string(),
});
export type VmRecord = z.infer<typeof record>;

export class VmRecords {
  readonly #directory: string;

  constructor(runDir: string) {
    this.#directory = join(runDir, 'vms');
  }

  async write(value: VmRecord): Promise<void> {
    await mkdir(this.#directory, { recursive: true, mode: 0o700 });
    const path = this.#path(value.vmId);
    const temporary = `${path}.${process.pid}`;
    await writeFile(temporary, `${JSON.stringify(value, null, 2)}\n`, { mode: 0o600 });
    await rename(temporary, path); // a reader sees the old record or the new one
  }

  async read(vmId: string): Promise<VmRecord | undefined> {
    return await this.#load(this.#path(vmId));
  }

  async remove(vmId: string): Promise<void> {
    await rm(this.#path(vmId), { force: true });
  }

  async list(): Promise<readonly VmRecord[]> {
    const names = await readdir(this.#directory).catch(() => [] as string[]);
    const loaded = await Promise.all(
      names.filter((name) => name.endsWith('.json')).map((name) => this.#load(join(this.#directory, name))),
    );
    return loaded.filter((value) => value !== undefined);
  }

  /** The record of a running QEMU, if it is one of ours. */
  async ofProcess(pid: number): Promise<VmRecord | undefined> {
    const startTime = await processStartTime(pid);
    return (await this.list()).find((value) => value.pid === pid && value.startTime === startTime);
  }

  #path(vmId: string): string {
    return join(this.#directory, `${vmId}.json`);
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

/** Field 22 of /proc/PID/stat; undefined if there is no such process. */
export const processStartTime = async (pid: number): Promise<string | undefined> => {
  const stat = await readFile(`/proc/${pid}/stat`, 'utf8').catch(() => undefined);
  // The second field is the command in parentheses and may hold anything: count from its end.
  const fields = stat?.slice(stat.lastIndexOf(')') + 2).split(' ');
  if (fields === undefined || fields[0] === 'Z') return undefined;
  return fields[19];
};

/** True while the very process of the record runs. */
export const isAlive = async (of: { readonly pid: number; readonly startTime: string }): Promise<boolean> =>
  (await processStartTime(of.pid)) === of.startTime;
