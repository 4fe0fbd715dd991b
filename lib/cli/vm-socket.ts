/** Which VM a command means: one by its monitor, or one that Holdfast launched. */
import { join } from 'node:path';
import { viewDaemons } from '../admin/client.js';
import { ConfigError } from '../errors.js';
import { LaunchedVm } from './launched-vm.js';

const VIEW_TIMEOUT_MS = 2_000;

/**
 * Where the VM's monitor is.
 * @throws ConfigError unless exactly one VM is meant, and no daemon has it
 */
export const freeVmSocket = async (named: {
  readonly qmp?: string | undefined;
  readonly vm?: string | undefined;
  readonly runDir: string;
}): Promise<string> => {
  const { qmp, vm, runDir } = named;
  if ((qmp === undefined) === (vm === undefined)) {
    throw new ConfigError(
      qmp === undefined ? 'which VM? neither --qmp nor --vm is given' : '--qmp and --vm exclude each other',
      { cure: '--qmp SOCKET names a running VM by its monitor, --vm NAME one that Holdfast launched.' },
    );
  }
  const path = qmp ?? join(runDir, `vm-${vm}`, 'qmp.sock');
  const views = await viewDaemons(runDir, { timeoutMs: VIEW_TIMEOUT_MS });
  const holder = views.find(
    (view) => 'status' in view && view.status.role === 'primary' && view.status.vm.qmp === path,
  );
  if (holder !== undefined) {
    throw new ConfigError(`the VM is in the hands of the daemon '${holder.name}', which has its monitor`, {
      cure: `\`holdfast detach ${holder.name}\` first.`,
    });
  }
  if (qmp === undefined && (await LaunchedVm.atSocket(path)) === undefined) {
    throw new ConfigError(`--vm: no VM that Holdfast launched as '${vm}' runs here (${runDir})`, {
      cure: 'Name any other VM by its monitor: --qmp SOCKET.',
    });
  }
  return path;
};
