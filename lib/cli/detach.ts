/** `holdfast detach`: stop protecting; the VM runs on. */
import type { Command } from 'commander';
import { teach, usageExitCode } from './command.js';
import type { Finish } from './program.js';
import { addRequestOptions, type RequestFlags, request } from './request.js';

export const addDetachCommand = (program: Command, finish: Finish): void => {
  const command = program
    .command('detach')
    .summary('stop protecting a VM; it runs on')
    .description(
      'Ends protection in order: held output leaves, the VM runs on without a backup, and QEMU is as it was ' +
        "before (no output filter, no userfaultfd). The primary's daemon ends. The same as SIGTERM to it.",
    );
  addRequestOptions(command, '30s').action(async (name: string | undefined, flags: RequestFlags) => {
    await request({
      command: 'detach',
      role: 'primary',
      name,
      flags,
      begin: (target) => `${target}: detaching …`,
      done: (target, { outcome }) => `${target}: ${(outcome as { readonly text: string }).text}`,
    });
    finish(0);
  });
  teach(command, {
    examples: ['holdfast detach', 'holdfast detach web1'],
    exitCodes: [
      { code: 0, meaning: 'the VM runs on, unprotected' },
      usageExitCode,
      { code: 11, meaning: 'no such daemon' },
      { code: 12, meaning: 'no answer within --timeout; look at `holdfast status`' },
    ],
  });
};
