/** Settings and flags of the commands around checkpoints on disk. */
import { z } from 'zod';
import { checkpointSettings } from '../checkpoint/options.js';
import { primarySettings } from '../primary/options.js';
import { daemonKeys, type Flag, primaryFlags } from './settings.js';
import { durationText, parseDurationMs, parseInteger, parseSwitch, switchText } from './values.js';

export const checkpointCommandSettings = checkpointSettings.extend({
  logLevel: daemonKeys.logLevel,
  /**
   * capture: the VM stays in its process, and only stands still for a moment. handoff: another QEMU goes on with
   * it, and the one that had it is saved.
   */
  method: z.enum(['capture', 'handoff']).default('capture'),
  /** QMP socket of the VM. */
  qmp: z.string().min(1).optional(),
  /** Name under which Holdfast launched it. */
  vm: z.string().min(1).optional(),
  /** From the begin of one checkpoint to the begin of the next; without it there is one. */
  everyMs: z.number().min(100).max(86_400_000).optional(),
});
export type CheckpointCommandSettings = z.output<typeof checkpointCommandSettings>;

export const checkpointFlags = {
  qmp: { flag: '--qmp <socket>', help: 'QMP socket of the VM' },
  vm: { flag: '--vm <name>', help: 'instead: the VM that Holdfast launched under this name' },
  method: {
    flag: '--method <method>',
    help: 'how a moment of the VM is had: capture (it stays in its process), handoff (another QEMU goes on with it, and the one that had it is saved)',
  },
  keep: {
    flag: '--keep <n>',
    help: 'checkpoints that stay; older ones are merged into the next, and removed (default: all stay)',
    parse: parseInteger,
  },
  everyMs: {
    flag: '--every <duration>',
    help: 'one after the other, begun so far apart, until Ctrl-C (default: one)',
    parse: parseDurationMs,
    show: durationText,
  },
  stagingMiB: {
    ...primaryFlags.stagingMiB,
    help: 'limit of the staging memory; more than that is written while the VM stands still',
  },
  copyThreads: primaryFlags.copyThreads,
  runDir: primaryFlags.runDir,
  logLevel: primaryFlags.logLevel,
} as const satisfies Record<Exclude<keyof CheckpointCommandSettings, 'dir'>, Flag>;

export const restoreCommandSettings = z.strictObject({
  dir: z.string().min(1),
  at: z.number().int().min(1).optional(),
  name: primarySettings.shape.name.unwrap().default('restored'),
  replace: primarySettings.shape.replace,
  onDemand: z.boolean().default(true),
  overwriteDisks: z.boolean().default(false),
  ramDir: z.string().startsWith('/', 'must be an absolute path').default('/dev/shm'),
  runDir: primarySettings.shape.runDir,
  logLevel: daemonKeys.logLevel,
});
export type RestoreCommandSettings = z.output<typeof restoreCommandSettings>;

export const restoreFlags = {
  at: { flag: '--at <epoch>', help: 'which checkpoint (default: the newest)', parse: parseInteger },
  name: { flag: '--name <name>', help: 'name of the VM, as for one that Holdfast launches' },
  replace: {
    ...primaryFlags.replace,
    help: 'what has another name now (image path, tap device); repeatable',
  },
  onDemand: {
    flag: '--on-demand <on|off>',
    help: 'on: the VM runs at once, and its memory follows as it is needed; off: all of it is put there first',
    parse: parseSwitch,
    show: switchText,
  },
  overwriteDisks: {
    flag: '--overwrite-disks <on|off>',
    help: "on: an image that is there already is replaced by the checkpoint's",
    parse: parseSwitch,
    show: switchText,
  },
  ramDir: { flag: '--ram-dir <dir>', help: "tmpfs or hugetlbfs for the VM's RAM" },
  runDir: primaryFlags.runDir,
  logLevel: primaryFlags.logLevel,
} as const satisfies Record<Exclude<keyof RestoreCommandSettings, 'dir'>, Flag>;
