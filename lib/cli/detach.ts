/** `holdfast detach`: stop protecting; the VM runs on. */
import type { Command } from 'commander';
import { usageExitCode } from './command.js';
import type { Finish } from './program.js';
import { addRequestCommand, outcomeText } from './request.js';

export const addDetachCommand = (program: Command, finish: Finish): void =>
  addRequestCommand(program, finish, {
    command: 'detach',
    role: 'primary',
    summary: 'stop protecting a VM; it runs on',
    description:
      'Ends protection in order: held output leaves, the VM runs on without a backup, and QEMU is as it was ' +
      "before (no output filter, no userfaultfd). The primary's daemon ends. The same as SIGTERM to it.",
    timeout: '30s',
    underWay: 'detaching',
    done: outcomeText,
    help: {
      examples: ['holdfast detach', 'holdfast detach web1'],
      exitCodes: [
        { code: 0, meaning: 'the VM runs on, unprotected' },
        usageExitCode,
        { code: 11, meaning: 'no such daemon' },
        { code: 12, meaning: 'no answer within --timeout; look at `holdfast status`' },
      ],
    },
  });
