/**
 * The public API. What is not exported here may change without notice.
 *
 *   Primary   protects a running VM onto a backup     (docs/embedding.md)
 *   Backup    keeps its checkpoints, and takes over
 *   Migration moves a running VM to where a Backup waits  (docs/migration.md)
 *   Checkpointing saves a running VM to disk, restoreCheckpoint starts it from there  (docs/checkpoints.md)
 *   handOff   gives a running VM to another QEMU of this host  (docs/handoff.md)
 *
 *   recordTrace                which core ran which vCPU (docs/trace.md)
 *   openSender, openReceiver   move pages of a file between processes (docs/transfer.md)
 */

// Admin sockets
export {
  type AskOptions,
  askDaemon,
  askStatus,
  DaemonError,
  type DaemonView,
  daemonNames,
  viewDaemons,
} from './admin/client.js';
export { type AdminCommand, adminSocketPath, type DaemonStatus } from './admin/protocol.js';
export { type AdminHandlers, AdminServer, type AdminServerOptions } from './admin/server.js';
// Roles
export {
  Backup,
  type BackupOptions,
  type BackupOutcome,
  type BackupStatus,
  type TakeoverReport,
} from './backup/backup.js';
export type { FallBackReport } from './backup/fall-back.js';
export {
  type BackupSettings,
  type BackupSettingsInput,
  backupSettings,
  checkBackupSettings,
} from './backup/options.js';
export type { ReplicaDiskStatus } from './backup/replica-disks.js';
// Checkpoints on disk
export type { FinishedLayer, LayerRound } from './checkpoint/binding.js';
export {
  type CheckpointByHandoffOptions,
  type HandoffCheckpointReport,
  takeByHandoff,
} from './checkpoint/by-handoff.js';
export type { Upkeep } from './checkpoint/chain.js';
export {
  Checkpointing,
  type CheckpointingOptions,
  type CheckpointReport,
} from './checkpoint/checkpointing.js';
export {
  type Entry as CheckpointEntry,
  type Listing as CheckpointListing,
  listCheckpoints,
} from './checkpoint/directory.js';
export type { Manifest as CheckpointManifest } from './checkpoint/manifest.js';
export {
  type CheckpointSettings,
  type CheckpointSettingsInput,
  checkpointSettings,
} from './checkpoint/options.js';
export { type RestoredVm, type RestoreOptions, restoreCheckpoint } from './checkpoint/restore.js';
export { type Verified, verifyCheckpoints } from './checkpoint/verify.js';
// Key and log
export { readKeyFile } from './control/auth.js';
// Hosts
export {
  type CheckStatus,
  type DoctorCheck,
  type DoctorOptions,
  type DoctorReport,
  renderDoctorReport,
  runDoctor,
} from './doctor/doctor.js';
// Errors
export {
  AuthError,
  CancelledError,
  ChecksumError,
  ConfigError,
  ConnectError,
  DamagedError,
  DiskError,
  DiskForeignError,
  FencedError,
  HoldfastError,
  type HoldfastErrorOptions,
  InjectError,
  LimitError,
  NoDaemonError,
  NoSpaceError,
  NotProtectedError,
  PeerLostError,
  ProtocolError,
  QmpConnectionError,
  QmpError,
  RamMappingError,
  RelayError,
  StandbyError,
  SystemError,
  TimeoutError,
  toHoldfastError,
  UnsupportedHostError,
  UnsupportedVmError,
  VersionError,
  VmGoneError,
  VmLostError,
} from './errors.js';
// Hand-off to another QEMU of this host
export {
  type CoordinatedOptions,
  type CoordinatedPhases,
  type CoordinatedResult,
  checkpointByHandoff,
  type StandingVm,
} from './handoff/coordinator.js';
export { handOff } from './handoff/handoff.js';
export type {
  HandoffOptions,
  HandoffParts,
  HandoffProgress,
  HandoffResult,
  HandoffSide,
} from './handoff/options.js';
export type { Logger } from './log.js';
// Migration
export type { FallBackPoint } from './migrate/fall-back-point.js';
export { Migration, type MigrationOptions, type MigrationProgress, migrate } from './migrate/migration.js';
export {
  checkMigrationSettings,
  type MigrationSettings,
  type MigrationSettingsInput,
  migrationSettings,
} from './migrate/options.js';
export {
  describeMigration,
  type EarlyMove,
  type MigrationOutcome,
  migrationError,
} from './migrate/outcome.js';
export { type PickedTarget, pickTarget } from './migrate/pick-target.js';
export type {
  MigrationDecision,
  MigrationLimits,
  MigrationPolicy,
  MigrationRound,
} from './migrate/policy.js';
export { QemuEngineMigration } from './migrate/qemu-migration.js';
export { type KernelProbe, type NativeBinding, native, type RamMapping } from './native.js';
export type { FaultCost, ServeProgress } from './native-early.js';
// Packet relays
export type { GateStats, OutputGate } from './output/gate.js';
export { type RelayRecord, type RelaySpec, relaysOf, runningRelay } from './output/relay-files.js';
export { endRelay, startRelay } from './output/relay-process.js';
export type { RoundStats } from './primary/convergence.js';
export type { CopyProgress } from './primary/copy-progress.js';
export type { DiskPlan } from './primary/disk-plan.js';
export type { DisksCopied, PrimaryDiskStatus } from './primary/disks.js';
export type {
  Distribution,
  EpochReport,
  EpochSummary,
  FinalEpoch,
  MeasuredPart,
} from './primary/epoch-report.js';
export type { IoErrorStop } from './primary/io-error-watch.js';
export type {
  BackupLostPolicy,
  CaptureMode,
  EpochMode,
  EpochTrigger,
  Failure,
  Outcome,
} from './primary/machine.js';
export {
  checkPrimarySettings,
  type PrimarySettings,
  type PrimarySettingsInput,
  primarySettings,
} from './primary/options.js';
export { describeOutcome, outcomeError } from './primary/outcome.js';
export type { PaceMode } from './primary/pace.js';
export type { Budget, PacingExplanation } from './primary/pacing-report.js';
export type { DiskPages, DisksIndexed } from './primary/page-disks.js';
export { Primary, type PrimaryOptions, type PrimaryStatus, type RunsEarly } from './primary/primary.js';
// VMs
export { QmpClient, type QmpConnectOptions } from './qmp/client.js';
// Senders
export type { SendCost } from './send/contest.js';
export type { SenderExplanation, SenderSetting } from './send/sender-choice.js';
// Traces (docs/trace.md)
export { type ChromeTrace, chromeTrace } from './trace/chrome-trace.js';
export type { TraceDocument } from './trace/document.js';
export { parseGuestSymbols } from './trace/guest-symbols.js';
export { renderTraceHtml } from './trace/html.js';
export { recordTrace, type TraceOptions } from './trace/record.js';
export { summarize, type TraceSummary } from './trace/summary.js';
// Page transfer, a library of its own (docs/transfer.md)
export {
  type OpenReceiverOptions,
  openReceiver,
  type PageReceiver,
  type Received,
} from './transfer/receiver.js';
export type { PageRange, PageRuns } from './transfer/runs.js';
export {
  type OpenSenderOptions,
  openSender,
  type PageSender,
  type SendPagesOptions,
  type Transfer,
  type TransferResult,
} from './transfer/sender.js';
export {
  forPrimary,
  forStandby,
  type PrimaryCommandLine,
  type PrimaryCommandOptions,
  type Replacement,
  type StandbyCommandOptions,
} from './vm/command-line.js';
export { type DescribeOptions, describeVm, type VmDescription } from './vm/describe.js';
export {
  killVm,
  type LaunchedVm,
  type LaunchOptions,
  launchVm,
  type QuitOptions,
  quitVm,
  type VmExit,
} from './vm/launch.js';
export { overRelays, type Relayed, type RelayedTap } from './vm/netdevs.js';
export { assertProtectable, type Refusal, refusals } from './vm/preflight.js';
export { isAlive, type ProcessIdentity } from './vm/process.js';
