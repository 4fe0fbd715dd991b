/** Guests on lab host a, each with a second monitor; and what memwriter reports, read from outside. */

import { open } from 'node:fs/promises';
import { join } from 'node:path';
import {
  type FlatGuestOptions,
  flatGuestArgs,
  flatReadyText,
  type GuestOptions,
  guestArgs,
  guestReadyText,
} from '../../lab/guest.js';
import type { Lab } from '../../lab/lab.js';
import type { LabProcess } from '../../lab/process.js';
import { waitFor, waitForText } from '../../lab/wait.js';

export const pageBytes = 4096;

export interface MemoryGuest {
  readonly process: LabProcess;
  readonly qmpPath: string;
  /** A second monitor, for looking at QEMU while Holdfast holds the first. */
  readonly observerPath: string;
  readonly ramPath: string;
  readonly ramBytes: number;
  readonly serialPath: string;
}

let started = 0;

const start = async (
  lab: Lab,
  ramMb: number,
  ramDir: string,
  args: (paths: { serialPath: string; qmpPath: string; ramPath: string }) => string[],
  ready: string,
): Promise<MemoryGuest> => {
  const id = ++started;
  const serialPath = lab.path(`memory-serial-${id}`);
  const qmpPath = lab.path(`memory-qmp-${id}`);
  const observerPath = lab.path(`memory-observer-${id}`);
  const ramPath = join(ramDir, `memory-ram-${id}`);
  // Inside the lab so that it cannot outlive the test; its sockets and its RAM are files, reached from anywhere.
  const qemu = await lab
    .host('a')
    .spawn('qemu-system-x86_64', [
      ...args({ serialPath, qmpPath, ramPath }),
      '-qmp',
      `unix:${observerPath},server=on,wait=off`,
    ]);
  const ended = qemu.exited.then(({ code, signal }) => {
    throw new Error(`QEMU ended with ${code ?? signal} before its guest was ready: ${qemu.stderr}`);
  });
  ended.catch(() => {}); // later ends are the test's own doing
  await Promise.race([waitForText(serialPath, ready, { timeoutMs: 50_000 }), ended]);
  return { process: qemu, qmpPath, observerPath, ramPath, ramBytes: ramMb << 20, serialPath };
};

export interface WriterOptions
  extends Pick<
    GuestOptions,
    'vcpus' | 'ramMb' | 'pagesPerSecond' | 'workingSetPages' | 'randomOrder' | 'disks'
  > {
  /** Where its RAM is kept, default the lab's tmpfs directory. */
  readonly ramDir?: string;
}

/** The Linux guest with memwriter, without a network. Settles when it writes. */
export const startWriter = async (
  lab: Lab,
  { ramMb = 128, ramDir = lab.sharedMemoryDir, ...options }: WriterOptions = {},
): Promise<MemoryGuest> => {
  const fixed = { workload: 'writer', tap: null, ramMb } as const;
  return await start(
    lab,
    ramMb,
    ramDir,
    (paths) => guestArgs({ ...options, ...fixed, ...paths }),
    guestReadyText,
  );
};

/** The Linux guest with redis, on the lab's network. Settles when redis answers. */
export const startRedis = async (
  lab: Lab,
  options: Pick<GuestOptions, 'vcpus' | 'ramMb'> = {},
): Promise<MemoryGuest> => {
  const ramMb = options.ramMb ?? 192;
  const fixed = { workload: 'redis', ramMb } as const;
  return await start(
    lab,
    ramMb,
    lab.sharedMemoryDir,
    (paths) => guestArgs({ ...options, ...fixed, ...paths }),
    guestReadyText,
  );
};

/** The flat multiboot guest. Settles when it writes. */
export const startFlat = async (
  lab: Lab,
  options: Pick<FlatGuestOptions, 'accel' | 'machine' | 'pages' | 'spin'>,
): Promise<MemoryGuest> => {
  const ramMb = 64;
  return await start(
    lab,
    ramMb,
    lab.sharedMemoryDir,
    (paths) => flatGuestArgs({ ...options, ...paths, ramMb }),
    flatReadyText,
  );
};

export interface WriterReport {
  readonly written: number;
  readonly checked: number;
  readonly errors: number;
}

const reportBytes = 160;
const chunkBytes = 1 << 20;

/**
 * memwriter's own report, read out of the guest's RAM: without a network it is the only place where it can be
 * seen. The line exists more than once (its file's page, the program's buffer); the newest counts. Read in
 * pieces, since Holdfast's heartbeats may share this process.
 */
export const writerReport = async (ramPath: string): Promise<WriterReport | undefined> => {
  const pattern = /^written=(\d{20}) laps=\d{20} checked=(\d{20}) full_checks=\d{10} errors=(\d{10})\n/;
  let newest: WriterReport | undefined;
  const file = await open(ramPath);
  try {
    const { size } = await file.stat();
    const chunk = Buffer.alloc(chunkBytes + reportBytes);
    for (let offset = 0; offset < size; offset += chunkBytes) {
      const { bytesRead } = await file.read(chunk, 0, chunk.length, offset);
      const found = chunk.subarray(0, bytesRead);
      for (let at = found.indexOf('written=0'); at >= 0; at = found.indexOf('written=0', at + 1)) {
        const match = pattern.exec(found.toString('latin1', at, at + reportBytes));
        if (match === null) continue;
        const [written, checked, errors] = match.slice(1).map(Number) as [number, number, number];
        if (newest === undefined || written > newest.written) newest = { written, checked, errors };
      }
    }
  } finally {
    await file.close();
  }
  return newest;
};

/** Waits until memwriter has verified and rewritten `pages` more pages, and returns its report then. */
export const writerProgress = async (ramPath: string, pages: number): Promise<WriterReport> => {
  const before = await waitFor("memwriter's report in RAM", () => writerReport(ramPath));
  return await waitFor(
    `memwriter to check ${pages} more pages than ${before.checked}`,
    async () => {
      const now = await writerReport(ramPath);
      return now !== undefined && now.checked >= before.checked + pages && now;
    },
    { intervalMs: 100 },
  );
};
