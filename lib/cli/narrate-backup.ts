/** What a backup is doing, told as it happens; and its live line. */
import type { Backup, BackupStatus } from '../backup/backup.js';
import type { FallBackReport } from '../backup/fall-back.js';
import type { BackupSettings } from '../backup/options.js';
import type { HoldfastError } from '../errors.js';
import { timeText } from '../migrate/words.js';
import type { EarlyGuestStats } from '../native-early.js';
import { SampleWindow } from '../stats.js';
import type { CommandConsole } from './console.js';
import { fellBackText, takeoverText } from './render.js';
import { sizeText } from './values.js';

const LIVE_EVERY_MS = 250;
/** Epochs that the live line speaks of. */
const LIVE_EPOCHS = 100;

/** Tells until the returned function is called. */
export const narrateBackup = (
  backup: Backup,
  console: CommandConsole,
  settings: BackupSettings,
): (() => void) => {
  let receiveMs = new SampleWindow(LIVE_EPOCHS);
  let pages = new SampleWindow(LIVE_EPOCHS);
  let lastEpoch = 0;
  let rounds = 0;

  const onPhase = (status: BackupStatus): void => {
    if (status.phase !== 'protecting') {
      lastEpoch = 0;
      receiveMs = new SampleWindow(LIVE_EPOCHS);
      pages = new SampleWindow(LIVE_EPOCHS);
      console.live('');
    }
    if (status.phase === 'syncing') rounds = 0;
    const text = phaseText(status, settings);
    if (text === undefined) return;
    console.tell(text, {
      event: status.phase,
      term: status.term,
      committedEpoch: status.committedEpoch,
      ...(status.vm === undefined ? {} : { vm: status.vm.name }),
      ...(status.reason === undefined ? {} : { reason: status.reason }),
    });
  };
  const onRound = (round: { readonly pages: number; readonly bytes: number }): void => {
    rounds += 1;
    console.tell(`  round ${rounds}: ${round.pages} pages received (${sizeText(round.bytes)})`, {
      event: 'round',
      round: rounds,
      ...round,
    });
  };
  const onCommitted = (commit: {
    readonly epoch: number;
    readonly pages: number;
    readonly receiveMs: number;
  }) => {
    lastEpoch = commit.epoch;
    receiveMs.add(commit.receiveMs);
    pages.add(commit.pages);
  };
  const onTookOver = (report: Parameters<typeof takeoverText>[0]): void =>
    console.tell(takeoverText(report), { event: 'took-over', ...report });
  const onTakeoverFailed = (error: HoldfastError): void => {
    const { code, message } = error;
    console.tell(`takeover failed: ${message}`, { event: 'takeover-failed', code, message });
  };
  const onPagesComplete = (stats: EarlyGuestStats): void => {
    const { pages, demandedPages, faults, faultP50Us, faultP99Us, faultMaxUs } = stats;
    const times = [faultP50Us, faultP99Us, faultMaxUs].map((us) => timeText(us / 1_000));
    console.tell(
      `all of its memory is here: ${pages} pages, ${demandedPages} of them waited for; ${faults} page faults of ${times[0]} (p50), ${times[1]} (p99), ${times[2]} (at most)`,
      { event: 'pages-complete', ...stats },
    );
  };
  const onPagesLost = ({ code, message }: HoldfastError): void =>
    console.tell(`the VM cannot go on: ${message}`, { event: 'pages-lost', code, message });
  const onFellBack = (report: FallBackReport): void =>
    console.tell(fellBackText(report), { event: 'fell-back', ...report });
  const onFallBackFailed = ({ code, message }: HoldfastError): void =>
    console.tell(`nobody runs the VM: ${message}`, { event: 'fall-back-failed', code, message });
  const onWarning = (error: HoldfastError): void => console.warn(error);

  backup.on('phase', onPhase);
  backup.on('round', onRound);
  backup.on('committed', onCommitted);
  backup.on('took-over', onTookOver);
  backup.on('takeover-failed', onTakeoverFailed);
  backup.on('pages-complete', onPagesComplete);
  backup.on('pages-lost', onPagesLost);
  backup.on('fell-back', onFellBack);
  backup.on('fall-back-failed', onFallBackFailed);
  backup.on('warning', onWarning);
  const timer = setInterval(() => {
    const early = backup.pages;
    if (early !== undefined && early.pagesLeft > 0) {
      console.live(`${early.pagesLeft} pages to come · page faults ${timeText(early.faultP50Us / 1_000)}`);
      return;
    }
    if (lastEpoch === 0) return;
    const receive = receiveMs.summary();
    console.live(
      [
        `epoch ${lastEpoch}`,
        `received in ${receive?.p50.toFixed(1)} ms (p99 ${receive?.p99.toFixed(1)})`,
        `${Math.round(pages.summary()?.p50 ?? 0)} pages`,
      ].join(' · '),
    );
  }, LIVE_EVERY_MS);
  onPhase(backup.status());
  return () => {
    clearInterval(timer);
    console.live('');
    backup.off('phase', onPhase);
    backup.off('round', onRound);
    backup.off('committed', onCommitted);
    backup.off('took-over', onTookOver);
    backup.off('takeover-failed', onTakeoverFailed);
    backup.off('pages-complete', onPagesComplete);
    backup.off('pages-lost', onPagesLost);
    backup.off('fell-back', onFellBack);
    backup.off('fall-back-failed', onFallBackFailed);
    backup.off('warning', onWarning);
  };
};

/** Undefined: told by what follows. */
const phaseText = (status: BackupStatus, settings: BackupSettings): string | undefined => {
  const vm = status.vm === undefined || status.vm.name === '' ? 'a VM' : `'${status.vm.name}'`;
  switch (status.phase) {
    case 'idle':
      return `waiting for a primary on ${status.listen}`;
    case 'preparing':
      return `a primary came (${status.primary ?? '?'}) with ${vm}: preparing the replica (${sizeText(status.vm?.ramBytes ?? 0)}) and a standby QEMU`;
    case 'syncing':
      return `receiving ${status.disks?.some(({ closed }) => !closed) ? 'disks and ' : ''}RAM while the VM runs`;
    case 'protecting':
      if (status.handOverOnly) return `all of ${vm} is here; it runs when it is handed over`;
      return `protecting ${vm} since epoch ${status.committedEpoch}, term ${status.term}`;
    case 'grace':
      if (status.handOverOnly) {
        return `the source of a migration is lost: ${status.reason}; it did not hand the VM over, so it may run there. Only if you know that it doesn't: holdfast takeover ${status.name} --run-dir ${settings.runDir}`;
      }
      return settings.takeover === 'manual'
        ? `primary lost: ${status.reason}; to run the VM here: holdfast takeover ${status.name} --run-dir ${settings.runDir}`
        : `primary lost: ${status.reason}; it may come back for a moment`;
    case 'taking-over':
      return `taking over: ${status.reason}`;
    case 'active':
    case 'ended':
      return undefined;
  }
};
