/** Disk images of the lab's guests: where they are, and what is on them when nobody uses them any more. */

import { mkdirSync, rmSync } from 'node:fs';
import { open } from 'node:fs/promises';
import { join } from 'node:path';
import { repositoryRoot } from './guest.js';
import type { Lab } from './lab.js';
import { execToEnd } from './process.js';
import type { SqliteRows } from './sqlite-load.js';

type DiskHost = 'a' | 'b' | 'd';

/** The image of disk `index` on that host: each host has files of its own, as if it were a machine of its own. */
export const diskPath = (lab: Lab, host: DiskHost, index = 0): string => lab.path(`disk${index}-${host}.img`);

/** Makes a sparse image. A guest with the workload `disk` formats it. */
export const createDisk = async (path: string, mebibytes: number): Promise<string> => {
  const file = await open(path, 'wx');
  try {
    await file.truncate(mebibytes * 2 ** 20);
  } finally {
    await file.close();
  }
  return path;
};

/** The same, of the format that snapshots of stock QEMU need. */
export const createQcow2 = async (path: string, mebibytes: number): Promise<string> => {
  await execToEnd('qemu-img', ['create', '-q', '-f', 'qcow2', path, `${mebibytes}M`]);
  return path;
};

/** For a backup on `to`: the standby's disks are that host's images, not those of the VM on `from`. */
export const diskReplacements = (lab: Lab, from: DiskHost, to: DiskHost, disks = 1): string[] =>
  Array.from({ length: disks }, (_, index) => [
    '--replace',
    `${diskPath(lab, from, index)}=${diskPath(lab, to, index)}`,
  ]).flat();

export interface CheckedImage {
  /** `e2fsck -fn` found nothing, after the journal was replayed. */
  readonly clean: boolean;
  /** What e2fsck said. */
  readonly report: string;
  /** The SQLite database on it, which passed integrity_check; undefined if there is none. */
  readonly rows: SqliteRows | undefined;
}

/**
 * Checks an image as a crash left it: on a copy, which is what the next mount would make of it (journal
 * replayed; the free counts of the superblock, which ext4 keeps only in memory, summed up anew).
 *
 * @throws if the database on it does not pass.
 */
export const checkImage = async (lab: Lab, path: string): Promise<CheckedImage> => {
  const dir = lab.path('image-check');
  const copy = join(dir, 'image');
  mkdirSync(dir, { recursive: true });
  try {
    await execToEnd('cp', ['--sparse=always', path, copy]);
    // Replays the journal and, the file system being marked valid then, looks no further. 1: it changed something.
    const replay = await execToEnd('e2fsck', ['-p', copy], { check: false });
    const fsck = await execToEnd('e2fsck', ['-fn', copy], { check: false });
    const clean = (replay.code === 0 || replay.code === 1) && fsck.code === 0;
    const report = [replay, fsck].map(({ code, stdout }) => `${stdout.trim()} (${code})`).join('\n');
    return { clean, report, rows: await rowsOf(copy, dir) };
  } finally {
    rmSync(dir, { recursive: true, force: true });
  }
};

/** The database is taken out with what SQLite needs to recover it. */
const rowsOf = async (image: string, dir: string): Promise<SqliteRows | undefined> => {
  const database = join(dir, 'rows.db');
  const commands = ['', '-journal', '-wal'].map((suffix) => `dump /rows.db${suffix} ${database}${suffix}`);
  const { stderr } = await execToEnd('debugfs', ['-f', '-', image], { input: `${commands.join('\n')}\n` });
  if (/rows\.db: File not found/.test(stderr)) return undefined;
  const sqlwriter = join(repositoryRoot(), '.cache/guest/sqlwriter');
  const { stdout, code } = await execToEnd(sqlwriter, [database, '--check'], { check: false });
  const match = /^ok (\d+) (\d+) (\d+)\n$/.exec(stdout);
  if (code !== 0 || match === null) throw new Error(`the database on ${image}: ${stdout.trim()}`);
  const [rows = 0, first = 0, last = 0] = match.slice(1).map(Number);
  return { rows, first, last };
};
