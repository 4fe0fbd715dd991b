/**
 * What this host can do: every check tries the thing itself where it can, and
 * each lack comes with its cure.
 */

import { access, constants, mkdtemp, readFile, rm, statfs } from 'node:fs/promises';
import { release as kernelRelease, tmpdir } from 'node:os';
import { join } from 'node:path';
import { HoldfastError } from '../errors.js';
import { HUGETLBFS_MAGIC, TMPFS_MAGIC } from '../file-systems.js';
import type { KernelProbe, NativeBinding } from '../native.js';
import type { QmpClient } from '../qmp/client.js';
import { versionText } from '../qmp/recipes.js';
import { launchVm, quitVm } from '../vm/launch.js';
import { checkDiskServer } from './disk-check.js';
import { reservedHugePages } from './huge-pages.js';
import { checkPlugQdisc } from './plug-check.js';
import { checkSenders } from './sender-checks.js';
import { checkTracing } from './trace-check.js';

export type CheckStatus = 'ok' | 'warn' | 'fail';

export interface DoctorCheck {
  readonly id: string;
  readonly title: string;
  readonly status: CheckStatus;
  /** What was found, in a few words. */
  readonly found: string;
  readonly cure?: string;
}

export interface DoctorReport {
  /** No check failed; warnings are allowed. */
  readonly ok: boolean;
  readonly checks: readonly DoctorCheck[];
}

export interface DoctorOptions {
  /** The addon, or the error with which loading it failed. */
  readonly native:
    | Pick<NativeBinding, 'probeKernel' | 'probeSenders' | 'probePlug' | 'SchedTrace' | 'readTracefs'>
    | Error;
  /** Default: qemu-system-x86_64. */
  readonly qemuBinary?: string;
  /** Where guest RAM and replicas are kept (default /dev/shm). */
  readonly ramDir?: string;
  readonly signal?: AbortSignal;
}

/** Free space below which not even a small VM's RAM fits. */
const RAM_DIR_FREE_BYTES_MIN = 512 * 2 ** 20;
const QEMU_VERSION_MIN = [7, 2] as const;
const QEMU_START_TIMEOUT_MS = 10_000;
/** As in native/guest/ram_view.cc. */
const HUGE_PAGE_BYTES_MAX = 2 * 2 ** 20;

/** Examines this host. Never throws for what it finds; it all goes into the report. */
export const runDoctor = async (options: DoctorOptions): Promise<DoctorReport> => {
  const { native, qemuBinary = 'qemu-system-x86_64', ramDir = '/dev/shm', signal } = options;
  const groups = await Promise.all([
    checkKernel(native),
    native instanceof Error ? [] : checkSenders(native),
    checkQemu(qemuBinary, signal),
    checkKvm(),
    checkRamDir(ramDir),
    native instanceof Error ? [] : checkPlugQdisc(native),
    checkDiskServer(),
    native instanceof Error ? [] : checkTracing(native),
  ]);
  const checks = groups.flat();
  return { ok: checks.every(({ status }) => status !== 'fail'), checks };
};

const SYMBOLS: Readonly<Record<CheckStatus, string>> = { ok: '✔', warn: '!', fail: '✘' };
const COLORS: Readonly<Record<CheckStatus, number>> = { ok: 32, warn: 33, fail: 31 };

/** The report for a person: one line per check, cures indented, a verdict at the end. */
export const renderDoctorReport = (
  report: DoctorReport,
  { color = false }: { readonly color?: boolean } = {},
): string => {
  const width = Math.max(...report.checks.map(({ title }) => title.length));
  const lines = report.checks.flatMap(({ title, status, found, cure }) => {
    const symbol = color ? `\u001b[${COLORS[status]}m${SYMBOLS[status]}\u001b[0m` : SYMBOLS[status];
    const line = `${symbol} ${title.padEnd(width)}  ${found}`;
    return cure === undefined || status === 'ok' ? [line] : [line, `  ${' '.repeat(width)}  → ${cure}`];
  });
  const failed = report.checks.filter(({ status }) => status === 'fail').length;
  const warned = report.checks.filter(({ status }) => status === 'warn').length;
  const verdict = report.ok
    ? `This host can protect VMs${warned === 0 ? '.' : ` (${count(warned, 'warning')}).`}`
    : `This host cannot protect VMs yet: ${count(failed, 'check')} failed.`;
  return [...lines, '', verdict].join('\n');
};

const count = (number: number, noun: string): string => `${number} ${noun}${number === 1 ? '' : 's'}`;

const check = (
  id: string,
  title: string,
  status: CheckStatus,
  found: string,
  cure?: string,
): DoctorCheck => ({
  id,
  title,
  status,
  found,
  ...(cure === undefined ? {} : { cure }),
});

const yes = (condition: boolean): CheckStatus => (condition ? 'ok' : 'fail');

const messageOf = (error: unknown): string => (error instanceof Error ? error.message : String(error));

// ── kernel ────────────────────────────────────────────────────────────────

const KERNEL_CURE = 'Boot Linux 6.7 or newer (Debian 12: linux-image-amd64 from bookworm-backports).';

const checkKernel = async (native: DoctorOptions['native']): Promise<DoctorCheck[]> => {
  let probe: KernelProbe;
  try {
    if (native instanceof Error) throw native;
    probe = await native.probeKernel();
  } catch (error) {
    return [
      check('kernel', 'kernel', 'ok', kernelRelease()),
      check(
        'addon',
        'native addon',
        'fail',
        messageOf(error),
        'Build it: npm run build:native (needs g++ and python3).',
      ),
    ];
  }
  const capabilities = BigInt(`0x${probe.capEff}`);
  return [
    check('kernel', 'kernel', yes(isKernelNewEnough(probe.release)), probe.release, KERNEL_CURE),
    check(
      'userfaultfd',
      'userfaultfd',
      yes(probe.userfaultfd.ok),
      probe.userfaultfd.ok ? 'can be opened' : `errno ${probe.userfaultfd.errno}`,
      'Run as root, and see that no seccomp profile (container) forbids userfaultfd.',
    ),
    check(
      'wp-async',
      'asynchronous write protection',
      yes(probe.wpAsync),
      probe.wpAsync ? 'UFFD_FEATURE_WP_ASYNC works' : 'UFFD_FEATURE_WP_ASYNC is missing',
      KERNEL_CURE,
    ),
    check(
      'pagemap-scan',
      'dirty page scan',
      yes(probe.pagemapScan),
      probe.pagemapScan ? 'PAGEMAP_SCAN reports what was written' : 'PAGEMAP_SCAN does not work',
      KERNEL_CURE,
    ),
    check(
      'ptrace',
      'ptrace and pidfd_getfd',
      yes(probe.ptrace && probe.pidfdGetfd),
      `ptrace ${probe.ptrace ? 'works' : 'fails'}, pidfd_getfd ${probe.pidfdGetfd ? 'works' : 'fails'}`,
      'Run as root (CAP_SYS_PTRACE), with kernel.yama.ptrace_scope below 3.',
    ),
    checkCapabilities(capabilities),
    await checkUnprivilegedUserfaultfd(capabilities),
    checkMemlock(probe.memlockBytes, capabilities),
  ];
};

const isKernelNewEnough = (release: string): boolean => {
  const [major = 0, minor = 0] = release.split('.').map((part) => Number.parseInt(part, 10));
  return major > 6 || (major === 6 && minor >= 7);
};

/** Bit numbers, from linux/capability.h. */
const CAPABILITY = { NET_ADMIN: 12, IPC_LOCK: 14, SYS_PTRACE: 19 };

const hasCapability = (mask: bigint, bit: number): boolean => ((mask >> BigInt(bit)) & 1n) === 1n;

const checkCapabilities = (mask: bigint): DoctorCheck => {
  const missing = Object.entries(CAPABILITY)
    .filter(([, bit]) => !hasCapability(mask, bit))
    .map(([name]) => `CAP_${name}`);
  const status = missing.includes('CAP_SYS_PTRACE') ? 'fail' : missing.length > 0 ? 'warn' : 'ok';
  return check(
    'capabilities',
    'capabilities',
    status,
    missing.length === 0 ? 'SYS_PTRACE, NET_ADMIN, IPC_LOCK' : `without ${missing.join(', ')}`,
    'Run as root. SYS_PTRACE is needed to follow guest memory, NET_ADMIN for tap devices, IPC_LOCK for pinned memory.',
  );
};

const checkUnprivilegedUserfaultfd = async (capabilities: bigint): Promise<DoctorCheck> => {
  const text = await readFile('/proc/sys/vm/unprivileged_userfaultfd', 'utf8').catch(() => '');
  const allowed = text.trim() === '1' || hasCapability(capabilities, CAPABILITY.SYS_PTRACE);
  return check(
    'unprivileged-userfaultfd',
    'userfaultfd in QEMU',
    // The descriptor is made inside QEMU, with QEMU's privileges: ours do not help a QEMU of another user.
    allowed ? (text.trim() === '1' ? 'ok' : 'warn') : 'fail',
    text === '' ? 'vm.unprivileged_userfaultfd is missing' : `vm.unprivileged_userfaultfd = ${text.trim()}`,
    'QEMU must run as root, or else: sysctl -w vm.unprivileged_userfaultfd=1',
  );
};

const MEMLOCK_BYTES_MIN = 64 * 2 ** 20;

const checkMemlock = (memlockBytes: number, capabilities: bigint): DoctorCheck => {
  const enough =
    memlockBytes === -1 ||
    memlockBytes >= MEMLOCK_BYTES_MIN ||
    hasCapability(capabilities, CAPABILITY.IPC_LOCK);
  return check(
    'memlock',
    'locked memory',
    enough ? 'ok' : 'warn',
    memlockBytes === -1 ? 'unlimited' : formatBytes(memlockBytes),
    `Raise it for zero-copy sending: ulimit -l ${MEMLOCK_BYTES_MIN / 1024} (systemd: LimitMEMLOCK=64M).`,
  );
};

// ── QEMU ──────────────────────────────────────────────────────────────────

const QEMU_CURE = 'Install QEMU 7.2 or newer (Debian: apt-get install qemu-system-x86).';

/** Starts a QEMU without a machine and asks it. */
const checkQemu = async (binary: string, signal: AbortSignal | undefined): Promise<DoctorCheck[]> => {
  const dir = await mkdtemp(join(tmpdir(), 'holdfast-doctor-'));
  try {
    const qmpPath = join(dir, 'qmp');
    const vm = await launchVm({
      binary,
      argv: [
        ...['-M', 'none', '-nodefaults', '-no-user-config', '-display', 'none'],
        ...['-qmp', `unix:${qmpPath},server=on,wait=off`],
      ],
      qmpPath,
      logPath: join(dir, 'log'),
      timeoutMs: QEMU_START_TIMEOUT_MS,
      signal,
    });
    try {
      return await checkQemuFeatures(binary, vm.qmp);
    } finally {
      await quitVm(vm);
    }
  } catch (error) {
    const cure = (error instanceof HoldfastError ? error.cure : undefined) ?? QEMU_CURE;
    return [check('qemu', 'QEMU', 'fail', messageOf(error), cure)];
  } finally {
    await rm(dir, { recursive: true, force: true });
  }
};

const checkQemuFeatures = async (binary: string, qmp: QmpClient): Promise<DoctorCheck[]> => {
  const [commands, filters, backends, capabilities] = await Promise.all(
    qmp.pipeline([
      { execute: 'query-commands' },
      { execute: 'qom-list-types', arguments: { implements: 'netfilter' } },
      { execute: 'qom-list-types', arguments: { implements: 'memory-backend' } },
      { execute: 'query-migrate-capabilities' },
    ]),
  );
  const { version } = qmp.greeting;
  const [majorMin, minorMin] = QEMU_VERSION_MIN;
  const newEnough =
    version.qemu.major > majorMin || (version.qemu.major === majorMin && version.qemu.minor >= minorMin);
  const has = (list: readonly { readonly name: string }[], name: string): boolean =>
    list.some((item) => item.name === name);
  const feature = (id: string, title: string, present: boolean, what: string): DoctorCheck =>
    check(id, title, yes(present), present ? what : `${what} is missing`, QEMU_CURE);
  return [
    check('qemu', 'QEMU', yes(newEnough), `${versionText(version)} (${binary})`, QEMU_CURE),
    feature(
      'qemu-device-state',
      'QEMU: device state',
      has(commands, 'xen-save-devices-state'),
      'xen-save-devices-state',
    ),
    feature('qemu-output', 'QEMU: holding output', has(filters, 'filter-buffer'), 'filter-buffer'),
    feature(
      'qemu-shared-ram',
      'QEMU: shared RAM',
      has(backends, 'memory-backend-file') &&
        capabilities.some(({ capability }) => capability === 'x-ignore-shared'),
      'memory-backend-file, x-ignore-shared',
    ),
  ];
};

// ── host ──────────────────────────────────────────────────────────────────

const checkKvm = async (): Promise<DoctorCheck> => {
  const usable = await access('/dev/kvm', constants.R_OK | constants.W_OK).then(
    () => true,
    () => false,
  );
  return check(
    'kvm',
    'KVM',
    usable ? 'ok' : 'warn',
    usable ? '/dev/kvm can be opened' : '/dev/kvm is missing or not accessible',
    'Without KVM guests run emulated (TCG): correct, but slow. Enable virtualization, load kvm_intel or kvm_amd.',
  );
};

const checkRamDir = async (dir: string): Promise<DoctorCheck> => {
  const title = `memory for RAM files`;
  let stats: Awaited<ReturnType<typeof statfs>>;
  try {
    stats = await statfs(dir);
  } catch (error) {
    return check(
      'ram-dir',
      title,
      'fail',
      `${dir}: ${messageOf(error)}`,
      `Mount a tmpfs there: mount -t tmpfs tmpfs ${dir}`,
    );
  }
  if (stats.type !== TMPFS_MAGIC && stats.type !== HUGETLBFS_MAGIC) {
    return check(
      'ram-dir',
      title,
      'fail',
      `${dir} is neither tmpfs nor hugetlbfs`,
      'Choose a directory on tmpfs, such as /dev/shm: writes can be followed only there.',
    );
  }
  if (stats.type === HUGETLBFS_MAGIC) return await checkHugePages(dir, title, stats.bsize);
  const freeBytes = stats.bavail * stats.bsize;
  const sizeBytes = stats.blocks * stats.bsize;
  return check(
    'ram-dir',
    title,
    freeBytes >= RAM_DIR_FREE_BYTES_MIN ? 'ok' : 'warn',
    `${dir}: ${formatBytes(freeBytes)} of ${formatBytes(sizeBytes)} free`,
    `Each VM or replica needs its RAM there; enlarge it: mount -o remount,size=… ${dir}`,
  );
};

const checkHugePages = async (dir: string, title: string, pageBytes: number): Promise<DoctorCheck> => {
  if (pageBytes > HUGE_PAGE_BYTES_MAX) {
    return check(
      'ram-dir',
      title,
      'fail',
      `${dir}: pages of ${formatBytes(pageBytes)}`,
      'A written byte makes its whole page travel, so 2 MiB is the most: mount -t hugetlbfs -o pagesize=2M …',
    );
  }
  const { freeBytes, totalBytes } = await reservedHugePages(pageBytes);
  return check(
    'ram-dir',
    title,
    freeBytes >= RAM_DIR_FREE_BYTES_MIN ? 'ok' : 'warn',
    `${dir}: ${formatBytes(freeBytes)} of ${formatBytes(totalBytes)} of huge pages free`,
    'Each VM or replica needs its RAM there; reserve more: sysctl vm.nr_hugepages=…',
  );
};

const formatBytes = (bytes: number): string => {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  const power = Math.min(units.length - 1, Math.floor(Math.log2(Math.max(1, bytes)) / 10));
  const value = bytes / 2 ** (10 * power);
  return `${value.toFixed(power === 0 || value >= 100 ? 0 : 1)} ${units[power]}`;
};
