/** Which VM a command means: one by its monitor, or one that Holdfast launched. */
import { join, resolve } from 'node:path';
import { viewDaemons } from '../admin/client.js';
import type { DaemonStatus } from '../admin/protocol.js';
import { ConfigError } from '../errors.js';
import { LaunchedVm } from './launched-vm.js';

const VIEW_TIMEOUT_MS = 2_000;

export interface NamedVm {
  readonly qmp?: string | undefined;
  readonly vm?: string | undefined;
  readonly runDir: string;
}

/**
 * Where the VM's monitor is.
 * @throws ConfigError unless exactly one VM is meant, and one that was launched runs
 */
export const vmSocket = async ({ qmp, vm, runDir }: NamedVm): Promise<string> => {
  if ((qmp === undefined) === (vm === undefined)) {
    throw new ConfigError(
      qmp === undefined ? 'which VM? neither --qmp nor --vm is given' : '--qmp and --vm exclude each other',
      { cure: '--qmp SOCKET names a running VM by its monitor, --vm NAME one that Holdfast launched.' },
    );
  }
  if (qmp !== undefined) return qmp;
  const path = join(runDir, `vm-${vm}`, 'qmp.sock');
  if ((await LaunchedVm.atSocket(path)) === undefined) {
    throw new ConfigError(`--vm: no VM that Holdfast launched as '${vm}' runs here (${runDir})`, {
      cure: 'Name any other VM by its monitor: --qmp SOCKET.',
    });
  }
  return path;
};

/**
 * The same, of a VM that no primary has.
 * @throws ConfigError also if one has it
 */
export const freeVmSocket = async (
  named: NamedVm,
  cureOf = (name: string): string => `\`holdfast detach ${name}\` first.`,
): Promise<string> => {
  const path = await vmSocket(named);
  const holder = (await daemonsOf(path, named.runDir)).find(({ role }) => role === 'primary');
  if (holder === undefined) return path;
  throw new ConfigError(`the VM is in the hands of the daemon '${holder.name}', which has its monitor`, {
    cure: cureOf(holder.name),
  });
};

export interface VmDaemon {
  readonly name: string;
  readonly role: DaemonStatus['role'];
}

/** Daemons that have the VM of a monitor: a primary, or a backup that took it over and watches its process. */
export const daemonsOf = async (qmp: string, runDir: string): Promise<readonly VmDaemon[]> => {
  const views = await viewDaemons(runDir, { timeoutMs: VIEW_TIMEOUT_MS });
  return views.flatMap((view) => {
    if (!('status' in view)) return [];
    const { status, name } = view;
    const its = status.role === 'primary' ? status.vm.qmp : status.takeover?.qmp;
    return its !== undefined && resolve(its) === resolve(qmp) ? [{ name, role: status.role }] : [];
  });
};
