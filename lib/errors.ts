/**
 * One class per stable code. Callers match on `error.code` (or instanceof);
 * people read `message`, and `cure` says what to do about it.
 *
 * Codes never change their meaning; new ones may be added.
 */

export interface HoldfastErrorOptions {
  /** What the operator can do about it; one or two sentences. */
  readonly cure?: string;
  readonly cause?: unknown;
  /** Machine-readable particulars: paths, limits, device names. */
  readonly details?: Readonly<Record<string, unknown>>;
}

export abstract class HoldfastError extends Error {
  abstract readonly code: string;
  /** Exit code of the CLI when this error ends it; docs/operations.md lists them. */
  readonly exitCode: number = 1;
  readonly cure: string | undefined;
  readonly details: Readonly<Record<string, unknown>>;

  constructor(message: string, options: HoldfastErrorOptions = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.name = new.target.name;
    this.cure = options.cure;
    this.details = options.details ?? {};
  }

  toJSON(): Record<string, unknown> {
    return { code: this.code, message: this.message, cure: this.cure, details: this.details };
  }
}

/** An option, flag or configuration key has a value that is not allowed; the message names the key. */
export class ConfigError extends HoldfastError {
  override readonly code = 'HOLDFAST_E_CONFIG';
  override readonly exitCode = 2;
}

/** The VM has something that cannot be protected; nothing was touched. `details.reasons` lists all. */
export class UnsupportedVmError extends HoldfastError {
  override readonly code = 'HOLDFAST_E_UNSUPPORTED_VM';
  override readonly exitCode = 3;
}

/** This host lacks a kernel feature, a capability or a QEMU feature. See `holdfast doctor`. */
export class UnsupportedHostError extends HoldfastError {
  override readonly code = 'HOLDFAST_E_UNSUPPORTED';
  override readonly exitCode = 3;
}

/** QEMU answered a QMP command with an error. `details`: command, class, desc. */
export class QmpError extends HoldfastError {
  override readonly code = 'HOLDFAST_E_QMP';
  override readonly exitCode = 4;
}

/** The QMP connection failed, ended or did not answer in time. */
export class QmpConnectionError extends HoldfastError {
  override readonly code = 'HOLDFAST_E_QMP_CONNECTION';
  override readonly exitCode = 4;
}

/** QEMU ended. `details`: pid, exit code or signal, last lines of its stderr where known. */
export class VmGoneError extends HoldfastError {
  override readonly code = 'HOLDFAST_E_VM_GONE';
  override readonly exitCode = 4;
}

/** A system call of the data plane failed. `details`: errno, syscall. */
export class SystemError extends HoldfastError {
  override readonly code = 'HOLDFAST_E_SYSCALL';
  override readonly exitCode = 4;
}

/** The userfaultfd could not be injected into QEMU. */
export class InjectError extends HoldfastError {
  override readonly code = 'HOLDFAST_E_INJECT';
  override readonly exitCode = 4;
}

/** Guest RAM is not a shared, file-backed mapping that another process can reach. */
export class RamMappingError extends HoldfastError {
  override readonly code = 'HOLDFAST_E_RAM_MAPPING';
  override readonly exitCode = 3;
}

/** The peer could not be reached in time. */
export class ConnectError extends HoldfastError {
  override readonly code = 'HOLDFAST_E_CONNECT';
  override readonly exitCode = 5;
}

/** The peer closed the connection, reset it, or fell silent. */
export class PeerLostError extends HoldfastError {
  override readonly code = 'HOLDFAST_E_PEER_LOST';
  override readonly exitCode = 5;
}

/** The VM ran on the peer before all of its memory was there, and was lost: what is here is older than that. */
export class VmLostError extends HoldfastError {
  override readonly code = 'HOLDFAST_E_VM_LOST';
  override readonly exitCode = 5;
}

/** The peer sent what the protocol does not allow. */
export class ProtocolError extends HoldfastError {
  override readonly code = 'HOLDFAST_E_PROTOCOL';
  override readonly exitCode = 5;
}

/** No protocol version that both sides speak. */
export class VersionError extends HoldfastError {
  override readonly code = 'HOLDFAST_E_VERSION';
  override readonly exitCode = 5;
}

/** An epoch's digest did not match; it was not committed. */
export class ChecksumError extends HoldfastError {
  override readonly code = 'HOLDFAST_E_CHECKSUM';
  override readonly exitCode = 5;
}

/** The keys of the two sides differ, or a bulk token was refused. */
export class AuthError extends HoldfastError {
  override readonly code = 'HOLDFAST_E_AUTH';
  override readonly exitCode = 6;
}

/**
 * Memory or a file system is full, or a quota, whatever was to go there: replica, staging, device state; a
 * disk's image, journal or log; the run directory.
 */
export class NoSpaceError extends HoldfastError {
  override readonly code = 'HOLDFAST_E_NO_SPACE';
  override readonly exitCode = 7;
}

/** A named limit was exceeded. */
export class LimitError extends HoldfastError {
  override readonly code = 'HOLDFAST_E_LIMIT';
  override readonly exitCode = 7;
}

/** The packet relay of a VM could not be started, or does not answer. */
export class RelayError extends HoldfastError {
  override readonly code = 'HOLDFAST_E_RELAY';
  override readonly exitCode = 4;
}

/** The standby QEMU could not be started, or did not take the device state. */
export class StandbyError extends HoldfastError {
  override readonly code = 'HOLDFAST_E_STATE_LOAD';
  override readonly exitCode = 8;
}

/** The other side is active in a newer term; this one must stay silent. */
export class FencedError extends HoldfastError {
  override readonly code = 'HOLDFAST_E_FENCED';
  override readonly exitCode = 9;
}

/** What was asked for needs a protected VM, and it is not protected now. */
export class NotProtectedError extends HoldfastError {
  override readonly code = 'HOLDFAST_E_NOT_PROTECTED';
  override readonly exitCode = 10;
}

/** No daemon answers under this name in the run directory. */
export class NoDaemonError extends HoldfastError {
  override readonly code = 'HOLDFAST_E_NO_DAEMON';
  override readonly exitCode = 11;
}

/** The answer did not come in time; what was asked for may still happen. */
export class TimeoutError extends HoldfastError {
  override readonly code = 'HOLDFAST_E_TIMEOUT';
  override readonly exitCode = 12;
}

/**
 * A disk, its replica, or what serves it failed, and not because something is full (NoSpaceError).
 * `details`: which, and errno where there is one.
 */
export class DiskError extends HoldfastError {
  override readonly code = 'HOLDFAST_E_DISK';
  override readonly exitCode = 13;
}

/** There is an image where the replica of a disk should be, and Holdfast knows nothing of it. */
export class DiskForeignError extends HoldfastError {
  override readonly code = 'HOLDFAST_E_DISK_FOREIGN';
  override readonly exitCode = 13;
}

/** What lies in a checkpoint is not what was written there; the message names checkpoint, file and place. */
export class DamagedError extends HoldfastError {
  override readonly code = 'HOLDFAST_E_DAMAGED';
  override readonly exitCode = 14;
}

/** The operation was cancelled (AbortSignal, close, Ctrl-C). */
export class CancelledError extends HoldfastError {
  override readonly code = 'HOLDFAST_E_CANCELLED';
  override readonly exitCode = 130;
}

const byCode: Readonly<
  Record<string, new (message: string, options?: HoldfastErrorOptions) => HoldfastError>
> = {
  HOLDFAST_E_CONFIG: ConfigError,
  HOLDFAST_E_UNSUPPORTED_VM: UnsupportedVmError,
  HOLDFAST_E_UNSUPPORTED: UnsupportedHostError,
  HOLDFAST_E_QMP: QmpError,
  HOLDFAST_E_QMP_CONNECTION: QmpConnectionError,
  HOLDFAST_E_VM_GONE: VmGoneError,
  HOLDFAST_E_SYSCALL: SystemError,
  HOLDFAST_E_INJECT: InjectError,
  HOLDFAST_E_RAM_MAPPING: RamMappingError,
  HOLDFAST_E_CONNECT: ConnectError,
  HOLDFAST_E_PEER_LOST: PeerLostError,
  HOLDFAST_E_VM_LOST: VmLostError,
  HOLDFAST_E_PROTOCOL: ProtocolError,
  HOLDFAST_E_VERSION: VersionError,
  HOLDFAST_E_CHECKSUM: ChecksumError,
  HOLDFAST_E_AUTH: AuthError,
  HOLDFAST_E_NO_SPACE: NoSpaceError,
  HOLDFAST_E_LIMIT: LimitError,
  HOLDFAST_E_RELAY: RelayError,
  HOLDFAST_E_STATE_LOAD: StandbyError,
  HOLDFAST_E_FENCED: FencedError,
  HOLDFAST_E_NOT_PROTECTED: NotProtectedError,
  HOLDFAST_E_NO_DAEMON: NoDaemonError,
  HOLDFAST_E_TIMEOUT: TimeoutError,
  HOLDFAST_E_DISK: DiskError,
  HOLDFAST_E_DISK_FOREIGN: DiskForeignError,
  HOLDFAST_E_DAMAGED: DamagedError,
  HOLDFAST_E_CANCELLED: CancelledError,
};

const cures: Readonly<Record<string, string>> = {
  HOLDFAST_E_INJECT:
    'Run as root (CAP_SYS_PTRACE) on the host that runs QEMU; `holdfast doctor` checks this.',
  HOLDFAST_E_UNSUPPORTED: 'Run `holdfast doctor`; Linux 6.7 or newer is needed.',
  HOLDFAST_E_DISK_FOREIGN:
    'Move it away, or start the backup with --adopt-disks on: it is overwritten then. --replace puts the replica elsewhere.',
  HOLDFAST_E_NO_SPACE:
    'Make room in what the message names: a file system (a tmpfs is enlarged by mount -o remount,size=…), or memory.',
};

/** By name. ENOSPC of a file system, EDQUOT of a quota: the same to whoever has to make room. */
export const isFullErrno = (name: string | undefined): boolean => name === 'ENOSPC' || name === 'EDQUOT';

/** Wraps an error of the addon (or anything thrown) into its public class. Holdfast errors pass through. */
export const toHoldfastError = (error: unknown, context?: string): HoldfastError => {
  if (error instanceof HoldfastError) return error;
  const native = error as {
    message?: string;
    code?: string;
    errno?: number;
    syscall?: string;
    cure?: string;
  } | null;
  const text = native?.message ?? String(error);
  const message = context === undefined ? text : `${context}: ${text}`;
  // Node's own errors name the errno.
  const code = isFullErrno(native?.code) ? 'HOLDFAST_E_NO_SPACE' : (native?.code ?? '');
  const ErrorClass = byCode[code] ?? SystemError;
  const cure = native?.cure ?? cures[code];
  return new ErrorClass(message, {
    cause: error,
    ...(cure === undefined ? {} : { cure }),
    details: { errno: native?.errno ?? 0, syscall: native?.syscall ?? '' },
  });
};
