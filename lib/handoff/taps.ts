/**
 * Tap devices, of which only one QEMU can have each: the new QEMU gets another one on the same bridge.
 *
 *   make    hf-…  beside tap0, on its bridge             both there, one guest
 *   turn    the bridge forgets behind which port the guest is: what comes for it goes to both, and waits in hf-…
 *   settle  tap0, without its QEMU, goes; hf-… is called tap0, with its address
 *   remove  hf-… goes: tap0 was never touched
 *
 * Linux lets an interface be renamed while it is up from 6.2 on.
 */
import { execFile } from 'node:child_process';
import { createHash } from 'node:crypto';
import { promisify } from 'node:util';
import { z } from 'zod';
import { SystemError, UnsupportedVmError } from '../errors.js';
import type { TapBackend } from './command-line.js';

const run = promisify(execFile);

const linkSchema = z.object({
  master: z.string().optional(),
  mtu: z.number(),
  txqlen: z.number().optional(),
  address: z.string(),
  addr_info: z.array(z.object({ scope: z.string() })).default([]),
  linkinfo: z.object({ info_data: z.object({ multi_queue: z.boolean().optional() }).optional() }).optional(),
});
type Link = z.output<typeof linkSchema>;

/** The same for the same VM, so that what a killed command left is found: at most 15 characters. */
export const tapNameFor = (pid: number, netdev: string): string =>
  `hf-${createHash('sha256').update(`${pid}/${netdev}`).digest('hex').slice(0, 10)}`;

interface TwinTap extends TapBackend {
  readonly twin: string;
  readonly link: Link;
}

export class HandoffTaps {
  readonly #twins: readonly TwinTap[];

  private constructor(twins: readonly TwinTap[]) {
    this.#twins = twins;
  }

  /** Looks at the taps; makes nothing. @throws UnsupportedVmError one of them is not simply a port of a bridge */
  static async examine(
    taps: readonly TapBackend[],
    nameOf: (netdev: string) => string,
  ): Promise<HandoffTaps> {
    return new HandoffTaps(
      await Promise.all(
        taps.map(async (tap) => ({ ...tap, twin: nameOf(tap.netdev), link: await examineTap(tap) })),
      ),
    );
  }

  /** @throws SystemError */
  async make(): Promise<void> {
    for (const { twin, link } of this.#twins) {
      await ip('link', 'del', 'dev', twin).catch(() => {}); // of a command that was killed
      await ip('tuntap', 'add', 'dev', twin, 'mode', 'tap');
      const queue = link.txqlen === undefined ? [] : ['txqueuelen', String(link.txqlen)];
      await ip('link', 'set', 'dev', twin, 'mtu', String(link.mtu), ...queue, 'master', link.master!, 'up');
    }
  }

  /** VM stopped: the next frame for the guest is for the new QEMU. Undone by the guest's next frame. */
  async turn(): Promise<void> {
    await Promise.all(
      this.#twins.map(({ tap }) => call('bridge', ['fdb', 'flush', 'dev', tap, 'master', 'dynamic'])),
    );
  }

  /** Both QEMUs done: the old one has ended, the new one runs. */
  async settle(): Promise<void> {
    for (const { tap, twin, link } of this.#twins) {
      await ip('link', 'del', 'dev', tap).catch(() => {}); // went with its QEMU, if that had made it
      await ip('link', 'set', 'dev', twin, 'name', tap);
      await ip('link', 'set', 'dev', tap, 'address', link.address);
    }
  }

  /** The new QEMU has ended and never ran. */
  async remove(): Promise<void> {
    for (const { twin } of this.#twins) await ip('link', 'del', 'dev', twin).catch(() => {});
  }
}

const examineTap = async ({ netdev, tap }: TapBackend): Promise<Link> => {
  const { stdout } = await call('ip', ['-json', '-details', 'addr', 'show', 'dev', tap]);
  const [link] = z.tuple([linkSchema]).parse(JSON.parse(stdout));
  const refuse = (reason: string): UnsupportedVmError =>
    new UnsupportedVmError(
      `this VM cannot be handed over; nothing was changed: tap device ${tap} (netdev ${netdev}) ${reason}`,
      {
        cure: 'Put the tap on a bridge, and addresses on the bridge; or let Holdfast launch the VM: its network then goes over a relay.',
      },
    );
  if (link.master === undefined) throw refuse('is not the port of a bridge, and only one QEMU can have it');
  if (link.addr_info.some(({ scope }) => scope === 'global')) throw refuse('has addresses of its own');
  if (link.linkinfo?.info_data?.multi_queue === true) throw refuse('has several queues');
  return link;
};

const ip = async (...args: readonly string[]): Promise<void> => {
  await call('ip', args);
};

const call = async (program: string, args: readonly string[]): Promise<{ stdout: string }> => {
  try {
    return await run(program, [...args]);
  } catch (error) {
    const { stderr, message } = error as Error & { stderr?: string };
    throw new SystemError(`${program} ${args.join(' ')}: ${stderr?.trim() || message}`, {
      cause: error,
      cure: 'Run as root, with iproute2 installed.',
    });
  }
};
