/**
 * One role of a measured pair, as a process inside a lab host: the library,
 * its reports as JSON lines on stdout, commands as lines on stdin.
 *
 *   node role.js primary|backup '<options as JSON, key in hexadecimal>'
 *   node role.js launch '<LaunchOptions as JSON>'      launches a VM over relays, which outlives this process
 */

import { readFileSync } from 'node:fs';
import { createInterface } from 'node:readline';
import { LaunchedVm } from '../lib/cli/launched-vm.js';
import { RING_BYTES_DEFAULT } from '../lib/disk/disk-files.js';
import { Backup, type BackupOptions, native, Primary, type PrimaryOptions } from '../lib/index.js';

const say = (value: object): void => {
  process.stdout.write(`${JSON.stringify(value)}\n`);
};

/** Anonymous memory: the process's own. Mapped guest RAM, replica and staging are shared memory, counted apart. */
const ownBytes = (): number =>
  Number(/^RssAnon:\s+(\d+) kB/m.exec(readFileSync('/proc/self/status', 'utf8'))?.[1] ?? 0) * 1024;

const runPrimary = async (options: PrimaryOptions): Promise<void> => {
  const primary = await Primary.start(options);
  primary.on('disks-copied', (copied) => say({ event: 'disks-copied', ...copied }));
  primary.on('round', (round) => say({ event: 'round', ...round }));
  primary.on('epoch', (report) =>
    say({ event: 'epoch', ...report, ownBytes: ownBytes(), atMs: performance.now() }),
  );
  createInterface({ input: process.stdin }).on('line', (line) => {
    if (line === 'detach') void primary.detach();
    if (line === 'status') say({ event: 'status', ...primary.status() });
    if (line === 'switchover')
      void primary.switchover().catch((error: Error) => say({ event: 'error', message: error.message }));
  });
  say({ event: 'ended', ...(await primary.ended) });
  process.exit(0);
};

const runBackup = async (options: BackupOptions): Promise<void> => {
  const backup = await Backup.start(options);
  backup.on('took-over', (report) => say({ event: 'took-over', ...report }));
  backup.on('committed', (epoch) => say({ event: 'committed', ...epoch, ownBytes: ownBytes() }));
  backup.on('takeover-failed', (error) => say({ event: 'takeover-failed', message: error.message }));
  say({ event: 'listening' });
  createInterface({ input: process.stdin }).on('line', (line) => {
    if (line === 'close') void backup.close();
  });
  say({ event: 'ended', ...(await backup.ended) });
  process.exit(0);
};

type LaunchOptions = Pick<
  Parameters<typeof LaunchedVm.ensure>[0],
  'runDir' | 'ramDir' | 'name' | 'commandLine'
>;

/** What one relay may hold; the default of `holdfast primary`. */
const HELD_BYTES_MAX = 16 << 20;
const DISK_DIR = '/var/lib/holdfast';

const launch = async (options: LaunchOptions): Promise<void> => {
  const vm = await LaunchedVm.ensure({
    ...options,
    ...{ gate: 'relay', heldBytesMax: HELD_BYTES_MAX, native },
    ...{ diskDir: DISK_DIR, ringBytes: RING_BYTES_DEFAULT },
  });
  say({ event: 'launched', pid: vm.pid, qmp: vm.qmpPath });
  process.exit(0);
};

const [role, json = '{}'] = process.argv.slice(2);
const { key = '', ...options } = JSON.parse(json) as { key?: string };
const withKey = { ...options, key: Buffer.from(key, 'hex') };
const run = (): Promise<void> => {
  if (role === 'launch') return launch(options as LaunchOptions);
  if (role === 'primary') return runPrimary(withKey as unknown as PrimaryOptions);
  return runBackup(withKey as unknown as BackupOptions);
};
run().catch((error: unknown) => {
  say({ event: 'error', message: error instanceof Error ? error.message : String(error) });
  process.exit(1);
});
