/** A process that says what happens as JSON lines on its standard output: what it said, and waiting for it. */

import { createInterface } from 'node:readline';
import type { LabProcess } from './process.js';

export interface JsonMessage {
  readonly event: string;
  readonly [field: string]: unknown;
}

export class JsonProcess {
  readonly process: LabProcess;
  /** Everything said so far, oldest first. */
  readonly messages: JsonMessage[] = [];
  readonly #listeners = new Set<() => void>();

  constructor(started: LabProcess) {
    this.process = started;
    createInterface({ input: started.child.stdout }).on('line', (line) => {
      if (!line.startsWith('{')) return;
      this.messages.push(JSON.parse(line) as JsonMessage);
      this.#wake();
    });
    void started.exited.then(() => this.#wake());
  }

  get pid(): number {
    return this.process.pid;
  }

  /** The messages of one kind. */
  of(event: string): JsonMessage[] {
    return this.messages.filter((message) => message.event === event);
  }

  say(line: string): void {
    this.process.child.stdin.write(`${line}\n`);
  }

  /** Settles when `condition` holds; rejects at the deadline, or when the process ends without it. */
  async until(what: string, condition: () => boolean, timeoutMs = 60_000): Promise<void> {
    const deadline = performance.now() + timeoutMs;
    while (!condition()) {
      const leftMs = deadline - performance.now();
      if (leftMs <= 0 || !this.process.running) {
        const why = this.process.running ? `${timeoutMs} ms passed` : 'the process ended';
        const said = this.messages.slice(-5).map((message) => JSON.stringify(message));
        throw new Error(
          `waited for ${what}: ${why}; it said ${said.join(' ')} ${this.process.stderr.slice(-2_000)}`,
        );
      }
      await new Promise<void>((resolve) => {
        const done = (): void => {
          clearTimeout(timer);
          this.#listeners.delete(done);
          resolve();
        };
        const timer = setTimeout(done, Math.min(leftMs, 1_000));
        this.#listeners.add(done);
      });
    }
  }

  /** The `count`th message of a kind (1: the first), when it comes. */
  async message(
    event: string,
    options: { readonly count?: number; readonly timeoutMs?: number } = {},
  ): Promise<JsonMessage> {
    const { count = 1, timeoutMs } = options;
    await this.until(`message ${count} '${event}'`, () => this.of(event).length >= count, timeoutMs);
    return this.of(event)[count - 1]!;
  }

  #wake(): void {
    for (const listener of [...this.#listeners]) listener();
  }
}
