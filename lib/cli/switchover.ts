/** `holdfast switchover`: the planned move of a protected VM to its backup. */
import type { Command } from 'commander';
import { usageExitCode } from './command.js';
import type { Finish } from './program.js';
import { addRequestCommand, outcomeText } from './request.js';

export const addSwitchoverCommand = (program: Command, finish: Finish): void =>
  addRequestCommand(program, finish, {
    command: 'switchover',
    role: 'primary',
    summary: 'move a protected VM to its backup, with nothing lost',
    description:
      'Moves a protected VM to its backup: a last checkpoint is taken and acknowledged, the backup runs it, ' +
      'and the QEMU here ends. Nothing is lost, connections stay. If the backup cannot run it, it goes on here. ' +
      "Run it on the primary's host.",
    timeout: '60s',
    underWay: 'switching over',
    done: outcomeText,
    help: {
      examples: ['holdfast switchover', 'holdfast switchover web1 --timeout 2m --json'],
      exitCodes: [
        { code: 0, meaning: 'the VM runs on the backup' },
        usageExitCode,
        { code: 10, meaning: 'the VM is not protected now, so there is nothing to move to' },
        { code: 11, meaning: 'no such daemon' },
        { code: 12, meaning: 'no answer within --timeout; look at `holdfast status`' },
        { code: 130, meaning: 'the backup did not take over; the VM stays here' },
      ],
    },
  });
