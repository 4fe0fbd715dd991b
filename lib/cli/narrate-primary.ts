/** What a primary is doing, told as it happens; and its live line. */
import type { HoldfastError } from '../errors.js';
import type { EpochReport } from '../primary/epoch-report.js';
import { type IoErrorStop, stopCure, stopText } from '../primary/io-error-watch.js';
import type { PrimarySettings } from '../primary/options.js';
import type { Primary, PrimaryStatus } from '../primary/primary.js';
import { SampleWindow } from '../stats.js';
import type { CommandConsole } from './console.js';
import { DiskNarration } from './narrate-disks.js';
import { sizeText } from './values.js';

const LIVE_EVERY_MS = 250;
/** Epochs that the live line speaks of; few, so that sorting them costs the epoch loop nothing. */
const LIVE_EPOCHS = 100;

/** Tells until the returned function is called. */
export const narratePrimary = (
  primary: Primary,
  console: CommandConsole,
  settings: PrimarySettings,
): (() => void) => {
  let rounds = 0;
  let announced = false;
  let told = '';
  const disks = new DiskNarration(console);
  const live = new LiveLine();

  const onPhase = (status: PrimaryStatus): void => {
    if (status.phase === 'protected' || status.phase === 'ended') return; // told by what follows
    announced = false;
    rounds = 0;
    disks.reset();
    live.reset();
    console.live('');
    // One attempt after the other to reach a lost backup is one story, told again when the reason changes.
    if (status.phase === 'connecting' && told !== '') return;
    const text = phaseText(status, settings);
    if (text === told) return;
    told = status.phase === 'waiting' ? text : '';
    console.tell(text, {
      event: status.phase,
      term: status.term,
      epoch: status.epoch,
      ...(status.reason === undefined ? {} : { reason: status.reason }),
    });
  };
  const onWarning = (error: HoldfastError): void => console.warn(error);
  const onStopped = (stop: IoErrorStop): void => {
    console.tell(`the VM stands still, for QEMU has stopped it: ${stopText(stop)}\n  ${stopCure(stop)}`, {
      event: 'vm-stopped',
      ...stop,
    });
  };
  const onGoesOn = (): void => console.tell('the VM goes on', { event: 'vm-goes-on' });
  const onRound = (round: {
    readonly pages: number;
    readonly zeroPages: number;
    readonly skippedPages?: number;
    readonly bytes: number;
    readonly sendMs: number;
  }): void => {
    rounds += 1;
    const skipped = (round.skippedPages ?? 0) === 0 ? '' : `; ${round.skippedPages} written again, skipped`;
    console.tell(
      `  round ${rounds}: ${round.pages} pages sent (${sizeText(round.bytes)}), ${round.zeroPages} zero pages, ${round.sendMs.toFixed(0)} ms${skipped}`,
      { event: 'round', round: rounds, ...round },
    );
  };
  const onEpoch = (report: EpochReport): void => {
    live.add(report);
    if (announced) return;
    const { phase, vm, term } = primary.status();
    // The end of an epoch whose backup was lost while its output left.
    if (phase !== 'protected') return;
    announced = true;
    console.tell(
      `protected since epoch ${report.epoch}: ${vm.name === '' ? 'the VM' : `'${vm.name}'`} (process ${vm.pid}) survives the loss of this host, term ${term}`,
      { event: 'protected', epoch: report.epoch, term, vm: vm.name, pid: vm.pid },
    );
  };
  primary.on('phase', onPhase);
  primary.on('disk-plan', disks.onPlan);
  primary.on('disk-copy', disks.onCopy);
  primary.on('disks-copied', disks.onCopied);
  primary.on('warning', onWarning);
  primary.on('vm-stopped', onStopped);
  primary.on('vm-goes-on', onGoesOn);
  primary.on('round', onRound);
  primary.on('epoch', onEpoch);
  const timer = setInterval(() => console.live(disks.live() ?? live.text()), LIVE_EVERY_MS);
  onPhase(primary.status());
  return () => {
    clearInterval(timer);
    console.live('');
    primary.off('phase', onPhase);
    primary.off('disk-plan', disks.onPlan);
    primary.off('disk-copy', disks.onCopy);
    primary.off('disks-copied', disks.onCopied);
    primary.off('warning', onWarning);
    primary.off('vm-stopped', onStopped);
    primary.off('vm-goes-on', onGoesOn);
    primary.off('round', onRound);
    primary.off('epoch', onEpoch);
  };
};

const phaseText = (status: PrimaryStatus, { onBackupLost, retryMs }: PrimarySettings): string => {
  switch (status.phase) {
    case 'connecting':
      return `connecting to the backup at ${status.backup}`;
    case 'syncing':
      return `copying ${disksText(status)}${sizeText(status.vm.ramBytes)} of RAM to ${status.backup} while the VM runs`;
    case 'waiting': {
      const left = status.vm.running
        ? 'the VM runs on, unprotected'
        : `the VM is stopped${status.outputHeld ? ' and its output held' : ''} (--on-backup-lost ${onBackupLost})`;
      return `no backup: ${status.reason}; ${left}; trying again every ${retryMs} ms`;
    }
    case 'protected':
    case 'ended':
      return status.phase;
  }
};

const disksText = ({ disks = [] }: PrimaryStatus): string => {
  if (disks.length === 0) return '';
  const bytes = disks.reduce((sum, { imageBytes }) => sum + imageBytes, 0);
  return `${disks.length === 1 ? 'a disk' : `${disks.length} disks`} (${sizeText(bytes)}) and `;
};

/** Medians and worst cases of the latest epochs, in one line. */
class LiveLine {
  #windows = LiveLine.#empty();
  #last: EpochReport | undefined;

  static #empty() {
    return {
      pauseMs: new SampleWindow(LIVE_EPOCHS),
      outputDelayMs: new SampleWindow(LIVE_EPOCHS),
      dirtyPages: new SampleWindow(LIVE_EPOCHS),
      bytesPerMs: new SampleWindow(LIVE_EPOCHS),
    };
  }

  reset(): void {
    this.#windows = LiveLine.#empty();
    this.#last = undefined;
  }

  add(report: EpochReport): void {
    this.#last = report;
    this.#windows.pauseMs.add(report.pauseMs);
    this.#windows.outputDelayMs.add(report.outputDelayMs);
    this.#windows.dirtyPages.add(report.dirtyPages);
    if (report.intervalMs > 0) this.#windows.bytesPerMs.add(report.bytes / report.intervalMs);
  }

  text(): string {
    if (this.#last === undefined) return '';
    const pause = this.#windows.pauseMs.summary();
    const delay = this.#windows.outputDelayMs.summary();
    const pages = this.#windows.dirtyPages.summary();
    const rate = this.#windows.bytesPerMs.summary();
    return [
      `epoch ${this.#last.epoch}`,
      `pause ${pause?.p50.toFixed(1)} ms (p99 ${pause?.p99.toFixed(1)})`,
      `output delay ${delay?.p50.toFixed(1)} ms (p99 ${delay?.p99.toFixed(1)})`,
      `${Math.round(pages?.p50 ?? 0)} dirty pages`,
      `${sizeText(Math.round((rate?.p50 ?? 0) * 1_000))}/s`,
    ].join(' · ');
  }
}
