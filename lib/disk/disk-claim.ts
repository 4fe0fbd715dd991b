/**
 * Who may start a server on a socket: several may find at the same time that there is none (a primary, and
 * the backup that launched the VM), and the second one's would take the socket from under the first one's.
 */
import { readFile, rm, writeFile } from 'node:fs/promises';
import { setTimeout as delay } from 'node:timers/promises';
import { DiskError } from '../errors.js';
import { identifyProcess, isAlive, type ProcessIdentity } from '../vm/process.js';

const POLL_MS = 10;
/** Longer than a start may take. */
const CLAIM_TIMEOUT_MS = 20_000;

/** Runs `work` when no other process is within; one that died there does not count. */
export const withClaim = async <Result>(path: string, work: () => Promise<Result>): Promise<Result> => {
  const mine = JSON.stringify(await identifyProcess(process.pid));
  const deadline = performance.now() + CLAIM_TIMEOUT_MS;
  while (!(await claim(path, mine))) {
    if (performance.now() > deadline) {
      throw new DiskError(`another process has been starting a disk server for too long (${path})`, {
        cure: 'Look for what it waits for; if there is none any more, remove that file.',
      });
    }
    await delay(POLL_MS);
  }
  try {
    return await work();
  } finally {
    await rm(path, { force: true });
  }
};

const claim = async (path: string, mine: string): Promise<boolean> => {
  try {
    await writeFile(path, mine, { flag: 'wx', mode: 0o600 });
    return true;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error;
  }
  const holder = await readFile(path, 'utf8').catch(() => '');
  const identity = parse(holder);
  // Empty: about to be written. Whoever writes it does so at once.
  if (identity !== undefined && !(await isAlive(identity))) await rm(path, { force: true });
  return false;
};

const parse = (text: string): ProcessIdentity | undefined => {
  try {
    return JSON.parse(text) as ProcessIdentity;
  } catch {
    return undefined;
  }
};
