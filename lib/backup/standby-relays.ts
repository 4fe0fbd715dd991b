/**
 * The packet relays of a standby. They pass everything: a standby has no network until it runs, and then
 * nobody protects it yet. After a takeover they stay with the VM, where the next primary finds them.
 *
 * One that ends while QEMU lives is started anew, unless a primary wants its output held: then it is the
 * primary's to replace.
 */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import type { StandbySpec } from '../control/messages.js';
import { toHoldfastError } from '../errors.js';
import type { Logger } from '../log.js';
import { controlSocketOf, type RelaySpec, relayFiles, removeRelayFiles } from '../output/relay-files.js';
import { endRelay, type StartedRelay, startRelay } from '../output/relay-process.js';
import { type Replacement, replaceText } from '../vm/command-line.js';
import { isAlive, type ProcessIdentity } from '../vm/process.js';

type Asked = NonNullable<StandbySpec['relays']>[number];

export interface StandbyRelaysOptions {
  readonly asked: readonly Asked[];
  readonly replacements: readonly Replacement[];
  /** For QEMU's sockets. */
  readonly dir: string;
  /** Tells the sockets of one standby from those of the next one. */
  readonly launch: number;
  readonly log: Logger;
}

export class StandbyRelays {
  /** Netdev's id to QEMU's socket. */
  readonly sockets: ReadonlyMap<string, string>;
  readonly #options: StandbyRelaysOptions;
  #ending = false;

  constructor(options: StandbyRelaysOptions) {
    const { asked, dir, launch } = options;
    this.#options = options;
    this.sockets = new Map(asked.map(({ netdev }) => [netdev, join(dir, `${netdev}-${launch}.sock`)]));
  }

  /** Settles when each stands between QEMU and its target. @throws RelayError */
  async start(vm: ProcessIdentity): Promise<void> {
    const starts = this.#options.asked.map(async (asked) => {
      const spec = this.#specOf(asked, vm);
      // A VM that ran here before and was killed with its daemons left word that its output be held.
      await removeRelayFiles(spec, 'all');
      await this.#start(spec);
    });
    await Promise.all(starts);
  }

  async end(): Promise<void> {
    this.#ending = true;
    await Promise.all([...this.sockets.values()].map(endRelay));
  }

  #specOf({ netdev, target, heldBytesMax }: Asked, vm: ProcessIdentity): RelaySpec {
    const { replacements } = this.#options;
    const socket = this.sockets.get(netdev)!;
    return {
      socket,
      control: controlSocketOf(socket),
      target:
        'tap' in target
          ? { tap: replaceText(target.tap, replacements) }
          : { unix: replaceText(target.unix, replacements) },
      heldBytesMax,
      vm,
    };
  }

  async #start(spec: RelaySpec): Promise<void> {
    const started = await startRelay(spec);
    void this.#keep(spec, started);
  }

  async #keep(spec: RelaySpec, { identity, exited }: StartedRelay): Promise<void> {
    await exited;
    if (this.#ending || (spec.vm !== null && !(await isAlive(spec.vm)))) return;
    const { log } = this.#options;
    const held = existsSync(relayFiles(spec.socket).held);
    log.error({ socket: spec.socket, pid: identity.pid, held }, 'the relay of a VM ended');
    if (held) return;
    await this.#start(spec).catch((error: unknown) => {
      log.error({ socket: spec.socket, err: toHoldfastError(error).message }, 'the VM has no network');
    });
  }
}
