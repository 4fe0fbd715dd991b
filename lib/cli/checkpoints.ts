/** `holdfast checkpoints`: what there is in a directory of checkpoints. */
import { resolve } from 'node:path';
import type { Command } from 'commander';
import { type Entry, type Listing, listCheckpoints } from '../checkpoint/directory.js';
import { bytesText, timeText } from '../migrate/words.js';
import { jsonOption, teach, usageExitCode } from './command.js';
import { CommandConsole } from './console.js';
import type { Finish } from './program.js';

export const addCheckpointsCommand = (program: Command, finish: Finish): void => {
  const command = program
    .command('checkpoints')
    .summary('list the checkpoints in a directory')
    .description(
      'Lists the checkpoints that `holdfast checkpoint` has taken: number, time, size, what each stands on. Only ' +
        'their manifests are read; `holdfast verify` reads everything.',
    )
    .usage('[options] DIR')
    .argument('<dir>', 'directory of the checkpoints')
    .addOption(jsonOption());
  command.action(async (dir: string, flags: { readonly json?: true }) => {
    const console = new CommandConsole({ json: flags.json === true });
    const listing = await listCheckpoints(resolve(dir));
    const kept = listing.entries.filter(({ isRetired }) => !isRetired);
    for (const entry of kept) console.tell(entryText(entry), { event: 'checkpoint', ...entryObject(entry) });
    for (const { epoch, dir: path, error } of listing.broken) {
      console.tell(`${epoch}  damaged: ${error.message}`, {
        event: 'damaged',
        epoch,
        path,
        damage: error.message,
      });
    }
    if (kept.length === 0 && listing.broken.length === 0) console.hint(`no checkpoints in ${dir}`);
    finish(exitCodeOf(listing));
  });
  teach(command, {
    examples: [
      'holdfast checkpoints /var/checkpoints/vm1',
      'holdfast checkpoints --json /var/checkpoints/vm1',
    ],
    exitCodes: [
      { code: 0, meaning: 'listed, also if there are none' },
      usageExitCode,
      { code: 14, meaning: 'a manifest is damaged; the others are listed' },
    ],
  });
};

const DAMAGED_EXIT_CODE = 14;

const exitCodeOf = ({ broken }: Listing): number => (broken.length === 0 ? 0 : DAMAGED_EXIT_CODE);

const entryText = ({ epoch, manifest }: Entry): string => {
  const { takenAt, parent, ram, pauseMs, vm, disks } = manifest;
  const kind = parent === null ? 'all of RAM' : `since ${parent}`;
  const withDisks = disks.length === 0 ? '' : `, ${disks.length} disk${disks.length === 1 ? '' : 's'}`;
  const name = vm.name === '' ? '' : `'${vm.name}', `;
  return `${epoch}  ${takenAt}  ${name}${kind}: ${bytesText(ram.pages * vm.pageSize)} of ${bytesText(vm.ramBytes)}${withDisks}; stood still for ${timeText(pauseMs)}`;
};

const entryObject = ({ epoch, dir, manifest }: Entry): Readonly<Record<string, unknown>> => ({
  epoch,
  path: dir,
  takenAt: manifest.takenAt,
  parent: manifest.parent,
  pauseMs: manifest.pauseMs,
  ramBytes: manifest.vm.ramBytes,
  bytes: manifest.ram.pages * manifest.vm.pageSize,
  vm: manifest.vm.name,
  disks: manifest.disks.map(({ name, image, bytes }) => ({ name, image, bytes })),
});
