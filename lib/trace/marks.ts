/** What else happened on the time line: epochs, pauses, migrations. */
import { hasMigrationEnded } from '../qmp/recipes.js';

export interface TraceMark {
  /** epoch: from its pause to its release; paused: the VM stood still. */
  readonly kind: 'epoch' | 'paused' | 'migration';
  readonly label: string;
  readonly fromUs: number;
  readonly toUs: number;
  /** For whoever points at it. */
  readonly details?: Readonly<Record<string, number | string>>;
}

export interface VmEvent {
  readonly name: string;
  readonly atUs: number;
  /** Of MIGRATION: its status. */
  readonly status?: string | undefined;
}

/**
 * QEMU's own events, STOP, RESUME and MIGRATION, as marks.
 * @param isPaused at the trace's begin
 */
export const marksOfVmEvents = (
  events: readonly VmEvent[],
  isPaused: boolean,
  endUs: number,
): TraceMark[] => {
  const marks: TraceMark[] = [];
  let pausedSinceUs = isPaused ? 0 : undefined;
  let migratesSinceUs: number | undefined;
  const paused = (toUs: number): void => {
    if (pausedSinceUs !== undefined) {
      marks.push({ kind: 'paused', label: 'paused', fromUs: pausedSinceUs, toUs });
    }
    pausedSinceUs = undefined;
  };
  const migrated = (toUs: number, status: string): void => {
    if (migratesSinceUs !== undefined) {
      marks.push({ kind: 'migration', label: `migration: ${status}`, fromUs: migratesSinceUs, toUs });
    }
    migratesSinceUs = undefined;
  };
  for (const { name, atUs, status = '' } of events) {
    if (name === 'STOP') pausedSinceUs ??= atUs;
    if (name === 'RESUME') paused(atUs);
    if (name !== 'MIGRATION') continue;
    if (hasMigrationEnded(status)) migrated(atUs, status);
    else migratesSinceUs ??= atUs;
  }
  paused(endUs);
  migrated(endUs, 'under way');
  return marks.sort((a, b) => a.fromUs - b.fromUs);
};
