/** The QEMU of a hand-off whose command was killed: it waits, has never run, and is in the way of the next one. */
import { existsSync } from 'node:fs';
import { readFile, rm } from 'node:fs/promises';
import { ConfigError } from '../errors.js';
import type { NativeBinding } from '../native.js';
import { QmpClient } from '../qmp/client.js';
import { killVm } from '../vm/launch.js';
import { identifyProcess } from '../vm/process.js';

const TIMEOUT_MS = 2_000;

/**
 * Ends it, if there is one.
 * @param qmpPath where a hand-off of this VM has its new QEMU's monitor
 * @returns the files that it had mapped, as the kernel names them
 * @throws ConfigError a VM runs in it
 */
export const endLeftover = async (
  qmpPath: string,
  native: Pick<NativeBinding, 'peerPid'>,
): Promise<readonly string[]> => {
  if (!existsSync(qmpPath)) return [];
  const options = { timeoutMs: TIMEOUT_MS };
  const qmp = await QmpClient.connect(qmpPath, options).catch(() => undefined);
  if (qmp === undefined) return []; // a socket that nobody has; launchVm() says more if somebody does
  try {
    const { running } = await qmp.execute('query-status', undefined, options);
    const pid = native.peerPid(qmp.socketFd);
    if (running) {
      throw new ConfigError(`a VM runs already in process ${pid}, whose monitor is ${qmpPath}`, {
        cure: 'Is that the same VM? Then end the other one: never let both run.',
      });
    }
    const mapped = await filesMappedBy(pid);
    await killVm(await identifyProcess(pid));
    await rm(qmpPath, { force: true }); // or whoever looks next waits for an answer there
    return mapped;
  } finally {
    await qmp.close();
  }
};

const filesMappedBy = async (pid: number): Promise<readonly string[]> => {
  const maps = await readFile(`/proc/${pid}/maps`, 'utf8');
  return [...maps.matchAll(/^(?:\S+ +){5}(\/.*)$/gm)].map(([, path]) => path!);
};
