/** What `holdfast checkpoint` is doing, told as it happens. */
import type { LayerRound } from '../checkpoint/binding.js';
import type { Upkeep } from '../checkpoint/chain.js';
import type { Checkpointing, CheckpointReport } from '../checkpoint/checkpointing.js';
import type { HoldfastError } from '../errors.js';
import { bytesText, timeText } from '../migrate/words.js';
import type { CommandConsole } from './console.js';

/** Tells until the returned function is called. */
export const narrateCheckpoints = (running: Checkpointing, console: CommandConsole): (() => void) => {
  const { pid } = running.vm.process;
  let last: CheckpointReport | undefined;
  const onRound = ({ epoch, round, pages, dirtyPages }: LayerRound & { epoch: number; round: number }) => {
    console.live(`checkpoint ${epoch}: round ${round}, ${pages} pages written, ${dirtyPages} to go`);
  };
  const onTaken = (report: CheckpointReport): void => {
    last = report;
    console.live('');
    console.tell(reportText(report), { event: 'taken', method: 'capture', ...report });
  };
  const onCommitted = ({ epoch, commitMs }: { epoch: number; commitMs: number }): void => {
    const { totalMs = Number.NaN, saveStateMs = 0, copyFileMs = 0 } = last ?? {};
    const phases = { allMs: totalMs + commitMs, saveStateMs, copyFileMs, commitMs };
    console.tell(phasesText(phases), { event: 'committed', epoch, ...phases });
  };
  const onUpkeep = (step: Upkeep): void => {
    console.tell(`  ${upkeepText(step)}`, { event: 'upkeep', ...step });
  };
  const onWarning = (error: HoldfastError): void => console.warn(error);
  running.on('round', onRound);
  running.on('taken', onTaken);
  running.on('committed', onCommitted);
  running.on('upkeep', onUpkeep);
  running.on('warning', onWarning);
  const { name, ramBytes } = running.vm;
  const what = name === undefined || name === '' ? `the VM (process ${pid})` : `'${name}' (process ${pid})`;
  console.tell(`checkpointing ${what}, ${bytesText(ramBytes)} of RAM`, {
    event: 'attached',
    pid,
    name: name ?? '',
    ramBytes,
  });
  return () => {
    console.live('');
    running.off('round', onRound);
    running.off('taken', onTaken);
    running.off('committed', onCommitted);
    running.off('upkeep', onUpkeep);
    running.off('warning', onWarning);
  };
};

const reportText = ({
  epoch,
  full,
  parent,
  pages,
  bytes,
  pauseMs,
  pausePages,
  totalMs,
}: CheckpointReport): string => {
  const kind = full ? 'all of RAM' : `since ${parent}`;
  return `checkpoint ${epoch} (${kind}): ${pages} pages (${bytesText(bytes)}) in ${timeText(totalMs)}; the VM stood still for ${timeText(pauseMs)} (${pausePages} pages)`;
};

/** The thesis's, of either method; migrating is only the hand-off's. */
export const phasesText = ({
  allMs,
  saveStateMs,
  copyFileMs,
  commitMs,
  migrateMs,
}: {
  readonly allMs: number;
  readonly saveStateMs: number;
  readonly copyFileMs: number;
  readonly commitMs: number;
  readonly migrateMs?: number;
}): string => {
  const migrate = migrateMs === undefined ? '–' : timeText(migrateMs);
  return `  all ${timeText(allMs)}: save state ${timeText(saveStateMs)}, copy file ${timeText(copyFileMs)}, commit ${timeText(commitMs)}, migrate ${migrate}`;
};

export const upkeepText = (step: Upkeep): string => {
  switch (step.kind) {
    case 'retire':
      return `checkpoint ${step.epoch} is given up`;
    case 'merge':
      return `merging ${step.lower} into ${step.upper}`;
    case 'remove':
      return `removing what is left of ${step.epoch}`;
  }
};
