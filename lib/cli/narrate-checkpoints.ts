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
  const onRound = ({ epoch, round, pages, dirtyPages }: LayerRound & { epoch: number; round: number }) => {
    console.live(`checkpoint ${epoch}: round ${round}, ${pages} pages written, ${dirtyPages} to go`);
  };
  const onTaken = (report: CheckpointReport): void => {
    console.live('');
    console.tell(reportText(report), { event: 'taken', ...report });
  };
  const onUpkeep = (step: Upkeep): void => {
    console.tell(`  ${upkeepText(step)}`, { event: 'upkeep', ...step });
  };
  const onWarning = (error: HoldfastError): void => console.warn(error);
  running.on('round', onRound);
  running.on('taken', onTaken);
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

const upkeepText = (step: Upkeep): string => {
  switch (step.kind) {
    case 'retire':
      return `checkpoint ${step.epoch} is given up`;
    case 'merge':
      return `merging ${step.lower} into ${step.upper}`;
    case 'remove':
      return `removing what is left of ${step.epoch}`;
  }
};
