/** Commands inside the guest, through the shell it serves on TCP port 2222 of the lab's LAN. */

import { randomBytes } from 'node:crypto';
import type { LabHost } from './lab.js';
import { guestAddress } from './network.js';
import { waitFor } from './wait.js';

const shellPort = '2222';

export interface GuestCommandOptions {
  /** Default 15,000. */
  readonly timeoutMs?: number;
}

export interface GuestCommandResult {
  /** Standard output and error of the command, in the order they came. */
  readonly output: string;
  readonly code: number;
}

/**
 * Runs a shell command in the guest, from the client's namespace, and returns what it printed. Throws if
 * the guest can't be reached or doesn't answer in time; a failing command is only a code other than 0.
 */
export const guestCommand = async (
  client: LabHost,
  command: string,
  { timeoutMs = 15_000 }: GuestCommandOptions = {},
): Promise<GuestCommandResult> => {
  const connection = await client.spawn('busybox', ['nc', guestAddress, shellPort]);
  try {
    const mark = randomBytes(8).toString('hex');
    // The command must not read the rest of the script, which is its shell's standard input. In two
    // pieces, the mark can't be taken for its own echo in an error message.
    connection.child.stdin.write(
      `(\n${command}\n) < /dev/null 2>&1\necho "${mark.slice(0, 8)}""${mark.slice(8)}:$?"\n`,
    );
    const answer = new RegExp(`^([^]*)${mark}:(\\d+)\\n`);
    const match = await waitFor(
      `the guest to run: ${command}`,
      () => {
        const found = answer.exec(connection.stdout);
        if (found === null && !connection.running) {
          throw new Error(
            `the guest's shell ended before it answered: ${connection.stderr.trim() || connection.stdout.slice(-400)}`,
          );
        }
        return found ?? undefined;
      },
      { timeoutMs, intervalMs: 10 },
    );
    return { output: match[1]!, code: Number(match[2]) };
  } finally {
    await connection.kill();
  }
};

/** guestCommand(), but a failing command throws; returns the output. */
export const guestOutput = async (
  client: LabHost,
  command: string,
  options?: GuestCommandOptions,
): Promise<string> => {
  const { output, code } = await guestCommand(client, command, options);
  if (code !== 0) throw new Error(`in the guest, ${command} ended with ${code}: ${output.trim()}`);
  return output;
};

/** A connection to the guest's shell, kept open. What it returns sends a word over it, and waits until it is back. */
export const openEcho = async (client: LabHost): Promise<(word: string) => Promise<void>> => {
  const shell = await client.spawn('busybox', ['nc', guestAddress, shellPort]);
  return async (word) => {
    shell.child.stdin.write(`echo ${word}\n`);
    await waitFor(`the guest to echo: ${word}`, () => shell.stdout.includes(`${word}\n`), {
      timeoutMs: 10_000,
    });
  };
};

/** Makes the guest reset itself; returns as soon as it will. Watch the serial console for the next ready line. */
export const rebootGuest = async (client: LabHost): Promise<void> => {
  await guestOutput(client, '(usleep 100000; reboot -f) > /dev/null 2>&1 &');
};

/** Differs after each boot of the guest, and only then. */
export const guestBootId = async (client: LabHost): Promise<string> =>
  (await guestOutput(client, 'cat /run/boot-id')).trim();

export interface MemwriterOptions {
  /** 0: as fast as it can. */
  readonly pagesPerSecond: number;
  readonly workingSetPages: number;
  readonly randomOrder?: boolean;
}

/** Starts memwriter beside whatever runs in the guest; each page is verified before it is written again. */
export const startMemwriter = async (client: LabHost, options: MemwriterOptions): Promise<void> => {
  const { pagesPerSecond, workingSetPages, randomOrder = false } = options;
  const order = randomOrder ? ' --random' : '';
  await guestOutput(
    client,
    `memwriter --pages-per-s ${pagesPerSecond} --working-set ${workingSetPages} --check${order} > /dev/console 2>&1 &
    until [ -s /run/memwriter ]; do usleep 20000; done`,
  );
};

export interface MemwriterReport {
  /** Pages written. */
  readonly written: number;
  readonly laps: number;
  /** Pages verified. */
  readonly checked: number;
  /** Verifications of the whole working set. */
  readonly fullChecks: number;
  /** Pages that were not what was last written to them; each is also a line on the serial console. */
  readonly errors: number;
}

/** Reads `name=number` out of a report line of one of the guest's programs. */
const reportReader =
  (line: string) =>
  (name: string): number => {
    const value = new RegExp(`\\b${name}=(\\d+)`).exec(line)?.[1];
    if (value === undefined) throw new Error(`the guest's report has no ${name}: ${line}`);
    return Number(value);
  };

const readMemwriter = async (client: LabHost): Promise<MemwriterReport> => {
  const number = reportReader(await guestOutput(client, 'cat /run/memwriter'));
  return {
    written: number('written'),
    laps: number('laps'),
    checked: number('checked'),
    fullChecks: number('full_checks'),
    errors: number('errors'),
  };
};

/** Makes memwriter verify its whole working set now, and returns its report after that. */
export const checkMemwriter = async (client: LabHost): Promise<MemwriterReport> => {
  const { fullChecks } = await readMemwriter(client);
  await guestOutput(client, 'killall -USR1 memwriter');
  return await waitFor('memwriter to verify its working set', async () => {
    const report = await readMemwriter(client);
    return report.fullChecks > fullChecks && report;
  });
};

/** What diskchurn in the guest has done so far. */
export interface DiskchurnReport {
  readonly steps: number;
  readonly fsyncs: number;
  readonly trims: number;
  readonly trimmedBytes: number;
  /** Blocks verified. */
  readonly checked: number;
  /** Verifications of all files. */
  readonly fullChecks: number;
  /** Blocks or files that were not what was last written; each is also a line on the serial console. */
  readonly errors: number;
}

export const readDiskchurn = async (client: LabHost): Promise<DiskchurnReport> => {
  const number = reportReader(await guestOutput(client, 'cat /run/diskchurn'));
  return {
    steps: number('steps'),
    fsyncs: number('fsyncs'),
    trims: number('trims'),
    trimmedBytes: number('trimmed_bytes'),
    checked: number('checked'),
    fullChecks: number('full_checks'),
    errors: number('errors'),
  };
};

/** Makes diskchurn read all its files from the disk now, and returns its report after that. */
export const checkDiskchurn = async (client: LabHost): Promise<DiskchurnReport> => {
  const { fullChecks } = await readDiskchurn(client);
  await guestOutput(client, 'killall -USR1 diskchurn');
  return await waitFor('diskchurn to verify its files', async () => {
    const report = await readDiskchurn(client);
    return report.fullChecks > fullChecks && report;
  });
};
