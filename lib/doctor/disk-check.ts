/** nbdkit with this package's plugin. Only VMs with writable disks need it, so a lack is a warning. */
import { execFile } from 'node:child_process';
import { promisify } from 'node:util';
import { diskPluginPath, NBDKIT_DEFAULT } from '../disk/disk-plugin.js';
import { HoldfastError } from '../errors.js';
import type { DoctorCheck } from './doctor.js';

const TIMEOUT_MS = 10_000;
const VERSION_MIN = [1, 32] as const;
const FOR_DISKS = 'Needed for VMs with writable disks, on both hosts.';

/** @param plugin where it is; throws HoldfastError if it is not built. Both for tests. */
export const checkDiskServer = async (
  nbdkit: string = NBDKIT_DEFAULT,
  plugin: () => string = diskPluginPath,
): Promise<DoctorCheck> => {
  const base = { id: 'disk-server', title: 'disk server' };
  const lack = (found: string, cure: string): DoctorCheck => ({
    ...base,
    status: 'warn',
    found,
    cure: `${FOR_DISKS} ${cure}`,
  });
  let path: string;
  try {
    path = plugin();
  } catch (error) {
    if (!(error instanceof HoldfastError)) throw error;
    return lack(error.message, error.cure ?? '');
  }
  try {
    // Loads the plugin, as a start would.
    const { stdout } = await promisify(execFile)(nbdkit, ['--dump-plugin', path], { timeout: TIMEOUT_MS });
    const name = /^name=(.*)$/m.exec(stdout)?.[1] ?? path;
    const version = await nbdkitVersion(nbdkit);
    if (isOlder(version)) {
      return lack(`nbdkit ${version}`, `Install nbdkit ${VERSION_MIN.join('.')} or newer.`);
    }
    return { ...base, status: 'ok', found: `nbdkit ${version} loads ${name}` };
  } catch (error) {
    const { code, stderr, message } = error as NodeJS.ErrnoException & { stderr?: string };
    if (code === 'ENOENT') return lack(`there is no ${nbdkit}`, 'apt-get install nbdkit');
    return lack(
      `nbdkit does not load ${path}: ${(stderr || message).trim()}`,
      'Build it again: npm run build:native.',
    );
  }
};

const nbdkitVersion = async (nbdkit: string): Promise<string> => {
  const { stdout } = await promisify(execFile)(nbdkit, ['--version'], { timeout: TIMEOUT_MS });
  return /nbdkit (\S+)/.exec(stdout)?.[1] ?? stdout.trim();
};

const isOlder = (version: string): boolean => {
  const [major = 0, minor = 0] = version.split('.').map(Number);
  return major < VERSION_MIN[0] || (major === VERSION_MIN[0] && minor < VERSION_MIN[1]);
};
