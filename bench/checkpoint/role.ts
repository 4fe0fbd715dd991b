/**
 * Checkpoints in a row, as `holdfast checkpoint` takes them, as a process inside a lab host: a new QEMU must be in
 * the guest's network.
 *
 *   node role.js '<RoleOptions as JSON>'      prints a JSON line per checkpoint
 */
import { readdir, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { takeByHandoff } from '../../lib/checkpoint/by-handoff.js';
import { Checkpointing } from '../../lib/checkpoint/checkpointing.js';

export interface RoleOptions {
  readonly method: 'capture' | 'handoff';
  readonly checkpoints: number;
  readonly qmp: string;
  readonly dir: string;
  readonly runDir: string;
}

/** What a checkpoint occupies on the disk. */
const occupiedBytes = async (dir: string): Promise<number> => {
  let bytes = 0;
  for (const name of await readdir(dir)) bytes += (await stat(join(dir, name))).blocks * 512;
  return bytes;
};

const say = async (path: string, figures: object): Promise<void> => {
  process.stdout.write(`${JSON.stringify({ ...figures, writtenBytes: await occupiedBytes(path) })}\n`);
};

const capture = async ({ checkpoints, qmp, dir, runDir }: RoleOptions): Promise<void> => {
  await using running = await Checkpointing.start({ qmp, dir, runDir });
  for (let number = 1; number <= checkpoints; number += 1) {
    const committed = new Promise<number>((resolve, reject) => {
      running.once('committed', ({ commitMs }) => resolve(commitMs));
      running.once('warning', reject); // a commit that failed
    });
    committed.catch(() => {}); // awaited below
    const { path, pauseMs, totalMs, saveStateMs, copyFileMs } = await running.take();
    const commitMs = await committed;
    const phases = { allMs: totalMs + commitMs, saveStateMs, copyFileMs, commitMs };
    await say(path, { ...phases, stoppedMs: pauseMs });
  }
  await running.idle();
};

const handOff = async ({ checkpoints, qmp, dir }: RoleOptions): Promise<void> => {
  for (let number = 1; number <= checkpoints; number += 1) {
    const report = await takeByHandoff({ qmp, dir });
    const { path, pauseMs, prefixMs, allMs, saveStateMs, copyFileMs, commitMs, migrateMs } = report;
    const phases = { allMs, saveStateMs, copyFileMs, commitMs, migrateMs };
    await say(path, { ...phases, stoppedMs: pauseMs, prefixMs });
  }
};

const options = JSON.parse(process.argv[2] ?? '') as RoleOptions;
await (options.method === 'capture' ? capture : handOff)(options);
