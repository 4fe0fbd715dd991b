/** A process of the suite in its lab host: a command, and the message that answers it. */
import { join } from 'node:path';
import { repositoryRoot } from '../../test/lab/guest.js';
import { type JsonMessage, JsonProcess } from '../../test/lab/json-process.js';
import type { LabHost } from '../../test/lab/lab.js';

const ANSWER_MS_MAX = 120_000;

export class Role {
  readonly #process: JsonProcess;

  private constructor(started: JsonProcess) {
    this.#process = started;
  }

  static async start(host: LabHost, script: string, args: readonly string[]): Promise<Role> {
    const path = join(repositoryRoot(), 'dist/bench/send', script);
    return new Role(new JsonProcess(await host.spawn(process.execPath, [path, ...args])));
  }

  /** Says it, and settles with the first message that is one of `events`. A process that fails ends. */
  async ask<Message extends { readonly event: string }>(
    command: object,
    ...events: readonly Message['event'][]
  ): Promise<Message> {
    this.forget();
    this.#process.say(JSON.stringify(command));
    return await this.next<Message>(...events);
  }

  /** The first such message since the last `forget`. */
  async next<Message extends { readonly event: string }>(
    ...events: readonly Message['event'][]
  ): Promise<Message> {
    const find = (): JsonMessage | undefined =>
      this.#process.messages.find(({ event }) => events.includes(event));
    await this.#process.until(events.join(' or '), () => find() !== undefined, ANSWER_MS_MAX);
    return find() as unknown as Message;
  }

  /** Thousands of messages go by; only those since the last command matter. */
  forget(): void {
    this.#process.messages.length = 0;
  }
}
