/** `holdfast verify`: reads checkpoints completely. */
import { resolve } from 'node:path';
import type { Command } from 'commander';
import type { Verified } from '../checkpoint/verify.js';
import { ConfigError, DamagedError } from '../errors.js';
import { jsonOption, loadDataPlane, teach, usageExitCode } from './command.js';
import { CommandConsole } from './console.js';
import type { Finish } from './program.js';
import { parseInteger } from './values.js';

export const addVerifyCommand = (program: Command, finish: Finish): void => {
  const command = program
    .command('verify')
    .summary('read checkpoints completely, and say which are whole')
    .description(
      'Reads every page, device state and disk of the checkpoints in a directory, and compares them with their ' +
        'checksums. What is damaged is named: checkpoint, file, place.',
    )
    .usage('[options] DIR')
    .argument('<dir>', 'directory of the checkpoints')
    .option('--at <epoch>', 'only this one', (text: string) => parseInteger(text, '--at'))
    .addOption(jsonOption());
  command.action(async (dir: string, flags: { readonly json?: true; readonly at?: number }) => {
    const console = new CommandConsole({ json: flags.json === true });
    const { verifyCheckpoints } = await loadDataPlane(() => import('../checkpoint/verify.js'));
    const damaged: number[] = [];
    let verified = 0;
    for await (const each of verifyCheckpoints(resolve(dir), flags.at)) {
      console.tell(verifiedText(each), { event: 'verified', ...each });
      verified += 1;
      if (!each.isWhole) damaged.push(each.epoch);
    }
    if (flags.at !== undefined && verified === 0) {
      throw new ConfigError(`there is no checkpoint ${flags.at} in ${dir}`);
    }
    if (damaged.length > 0) {
      throw new DamagedError(`damaged: checkpoint ${damaged.join(', ')}`, {
        cure: 'What is whole can be restored (--at); remove what is not.',
        details: { damaged },
      });
    }
    if (verified === 0) console.hint(`no checkpoints in ${dir}`);
    finish(0);
  });
  teach(command, {
    examples: ['holdfast verify /var/checkpoints/vm1', 'holdfast verify --at 12 --json /var/checkpoints/vm1'],
    exitCodes: [
      { code: 0, meaning: 'all are whole' },
      usageExitCode,
      { code: 14, meaning: 'at least one is damaged' },
    ],
  });
};

const verifiedText = ({ epoch, isWhole, damage }: Verified): string =>
  isWhole ? `checkpoint ${epoch} is whole` : [`checkpoint ${epoch} is damaged`, ...damage].join('\n  ');
