/** What a migration is doing, told as it happens; and its live line. */
import type { HoldfastError } from '../errors.js';
import { ageMs, type FallBackPoint, pointText } from '../migrate/fall-back-point.js';
import type { AnyMigration, MigrationProgress, MigrationStatus } from '../migrate/migration.js';
import type { MigrationSettings } from '../migrate/options.js';
import type { MigrationFinal } from '../migrate/outcome.js';
import { bytesText, timeText } from '../migrate/words.js';
import type { DiskPages, DisksIndexed } from '../primary/page-disks.js';
import type { RunsEarly } from '../primary/primary.js';
import type { CommandConsole } from './console.js';
import { DiskNarration } from './narrate-disks.js';
import { sizeText } from './values.js';

const LIVE_EVERY_MS = 250;

/** Tells until the returned function is called. */
export const narrateMigration = (
  migration: AnyMigration,
  console: CommandConsole,
  settings: MigrationSettings,
): (() => void) => {
  let told = '';
  const onPhase = (status: MigrationStatus): void => {
    const text = phaseText(status, settings);
    if (text === undefined || text === told) return;
    told = text;
    console.tell(text, {
      event: status.phase,
      term: status.term,
      ...(status.reason === undefined ? {} : { reason: status.reason }),
    });
  };
  const onRound = (progress: MigrationProgress): void => {
    console.tell(roundText(progress), { event: 'round', ...progress });
  };
  const onFinal = (final: MigrationFinal): void => {
    const { dirtyPages, bytes, stopMs, ackMs } = final;
    const stop = stopMs === undefined ? '' : `, after ${timeText(stopMs)} for the stop`;
    console.tell(
      `  stopped: ${dirtyPages} pages (${bytesText(bytes)}) in ${timeText(ackMs)}${stop}; handing over`,
      { event: 'final', ...final },
    );
  };
  const onIndexed = (indexed: DisksIndexed): void => {
    const { images, readBytes, dataBytes, millis, error } = indexed;
    const all = readBytes >= dataBytes ? '' : ` of ${bytesText(dataBytes)}`;
    const why = error === undefined ? '' : `; ${error}`;
    console.tell(
      `  disks looked through for pages: ${bytesText(readBytes)}${all} of ${images.join(', ')} in ${timeText(millis)}${why}`,
      { event: 'disks-indexed', ...indexed },
    );
  };
  let fallback: FallBackPoint | undefined;
  const onFallback = (point: FallBackPoint): void => {
    fallback = point;
    const old = ageMs(point, Date.now());
    console.tell(
      `  should this host be lost before all of its memory has come, the VM over there goes on from ${pointText(point)}, taken ${timeText(old)} ago`,
      { event: 'fallback', ...point, ageMs: old },
    );
  };
  const onRunsEarly = (early: RunsEarly): void => {
    const then = fallback === undefined ? 'the VM is lost' : `it goes on from ${pointText(fallback)}`;
    console.tell(
      `  it runs over there, after ${timeText(early.downtimeMs)}; ${early.pages} pages follow. If this host dies before they are there, ${then}`,
      { event: 'runs-early', ...early },
    );
  };
  const tellFollowing = (): string => {
    const { following } = migration;
    if (following === undefined) return '';
    if (console.json) console.tell('', { event: 'pages', ...following });
    const { pagesLeft, demandedPages, bytes } = following;
    return `  ${pagesLeft} pages left, ${demandedPages} were waited for (${bytesText(bytes)} sent)`;
  };
  const onWarning = (error: HoldfastError): void => console.warn(error);
  const disks = new DiskNarration(console);
  const timer = setInterval(() => console.live(disks.live() ?? tellFollowing()), LIVE_EVERY_MS);
  migration.on('phase', onPhase);
  migration.on('disk-plan', disks.onPlan);
  migration.on('disk-copy', disks.onCopy);
  migration.on('disks-copied', disks.onCopied);
  migration.on('disks-indexed', onIndexed);
  migration.on('fallback', onFallback);
  migration.on('round', onRound);
  migration.on('final', onFinal);
  migration.on('runs-early', onRunsEarly);
  migration.on('warning', onWarning);
  const { movedDisks } = migration;
  if (movedDisks !== undefined) {
    const ids = movedDisks.disks.map(({ id }) => id).join(', ');
    const stood = timeText(movedDisks.pauseMs);
    console.tell(`moved to disk servers: ${ids}; the VM stood still for ${stood}`, {
      event: 'disks-moved',
      ...movedDisks,
    });
  }
  onPhase(migration.status());
  return () => {
    clearInterval(timer);
    console.live('');
    migration.off('phase', onPhase);
    migration.off('disk-plan', disks.onPlan);
    migration.off('disk-copy', disks.onCopy);
    migration.off('disks-copied', disks.onCopied);
    migration.off('disks-indexed', onIndexed);
    migration.off('fallback', onFallback);
    migration.off('round', onRound);
    migration.off('final', onFinal);
    migration.off('runs-early', onRunsEarly);
    migration.off('warning', onWarning);
  };
};

/** Undefined: told by what follows. */
const phaseText = (
  status: MigrationStatus,
  { to, policy, downtimeMs, resumeEarly, fallback }: MigrationSettings,
): string | undefined => {
  switch (status.phase) {
    case 'connecting':
      return `connecting to ${to}`;
    case 'syncing': {
      const disks = status.disks === undefined ? '' : 'disks and ';
      return `moving ${vmText(status)}: sending ${disks}${sizeText(status.vm.ramBytes)} of RAM to ${to} while it runs (policy ${policy}, downtime ${timeText(downtimeMs)})`;
    }
    case 'waiting':
      return status.vm.running
        ? undefined
        : `no answer from ${to} (${status.reason}): the VM may run there, so it stays stopped here until it is asked again`;
    case 'protected':
      return resumeEarly === 'now'
        ? `moving ${vmText(status)}: it stops now and runs on ${to} at once; its ${sizeText(status.vm.ramBytes)} of RAM follow. If ${fallback === undefined ? 'either' : 'that'} host dies before all of it is there, the VM is lost`
        : undefined;
    case 'ended':
      return undefined;
  }
};

const vmText = ({ vm }: MigrationStatus): string =>
  vm.name === '' ? `the VM (process ${vm.pid})` : `'${vm.name}' (process ${vm.pid})`;

const roundText = ({
  round,
  pages,
  zeroPages,
  skippedPages = 0,
  bytes,
  roundMs,
  bytesPerSecond,
  decision,
  diskPages,
}: MigrationProgress) =>
  [
    `  round ${round}: ${pages} pages (${bytesText(bytes)}) and ${zeroPages} zero pages in ${timeText(roundMs)}, ${bytesText(bytesPerSecond)}/s`,
    ...(skippedPages === 0 ? [] : [`    ${skippedPages} skipped: written again meanwhile`]),
    ...(diskPages === undefined ? [] : [diskPagesText(diskPages)]),
    `    ${decision.reason} ${nextText[decision.step]}`,
  ].join('\n');

const diskPagesText = ({ verified, mismatched, unread, savedBytes }: DiskPages): string => {
  const again = [
    ...(mismatched === 0 ? [] : [`${mismatched} were something else there`]),
    ...(unread === 0 ? [] : [`${unread} could not be read there in time`]),
  ];
  const resent = again.length === 0 ? '' : `; ${again.join(' and ')}, and were sent`;
  return `    ${verified} pages read from disks there, ${bytesText(Math.max(0, savedBytes))} saved${resent}`;
};

const nextText = {
  'next-round': 'Another round.',
  'stop-and-copy': 'Stopping the VM.',
  'post-copy': 'Stopping the VM; what is left follows.',
} as const;
