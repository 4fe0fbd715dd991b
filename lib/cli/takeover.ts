/** `holdfast takeover`: the operator's word that the backup shall run the VM now. */
import type { Command } from 'commander';
import type { TakeoverReport } from '../backup/backup.js';
import { usageExitCode } from './command.js';
import type { Finish } from './program.js';
import { takeoverText } from './render.js';
import { addRequestCommand } from './request.js';

export const addTakeoverCommand = (program: Command, finish: Finish): void =>
  addRequestCommand(program, finish, {
    command: 'takeover',
    role: 'backup',
    summary: 'run the last checkpoint on this backup, now',
    description:
      'Makes the backup run its last checkpoint now, without waiting for a failure: what is needed with ' +
      "`backup --takeover manual` once you know that the primary is gone. Run it on the backup's host. " +
      'A primary that still lives gets no more acknowledgements: it stops its VM with its output held. ' +
      'For a planned move use `holdfast switchover`, which loses nothing.',
    timeout: '60s',
    underWay: 'taking over',
    done: (_name, { report }) => takeoverText(report as TakeoverReport),
    help: {
      notes: `
Before you do this with a primary whose state is unknown, know its policy: with
\`--on-backup-lost release\` a primary that cannot be reached may be running the
VM too, its output not held.`,
      examples: ['holdfast takeover', 'holdfast takeover backup --json'],
      exitCodes: [
        { code: 0, meaning: 'the VM runs here' },
        usageExitCode,
        { code: 8, meaning: 'the standby QEMU did not take the state; the replica is kept' },
        { code: 10, meaning: 'there is no checkpoint to run' },
        { code: 11, meaning: 'no such daemon' },
        { code: 12, meaning: 'no answer within --timeout; look at `holdfast status`' },
      ],
    },
  });
