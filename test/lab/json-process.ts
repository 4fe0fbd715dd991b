/** A process that says what happens as JSON lines on its standard output: what it said, and waiting for it. */

import { createInterface } from 'node:readline';
import type { LabProcess, ProcessEnd } from './process.js';
import { waitFor } from './wait.js';

export interface JsonMessage {
  readonly event: string;
  readonly [field: string]: unknown;
}

/** The last thing that a command of Holdfast's says if it fails. */
export interface JsonFailure {
  readonly code: string;
  readonly message: string;
  readonly cure?: string;
  readonly exitCode: number;
}

export class JsonProcess {
  readonly process: LabProcess;
  /** Everything said so far, oldest first. */
  readonly messages: JsonMessage[] = [];
  readonly #listeners = new Set<() => void>();
  #failure: JsonFailure | undefined;
  /** The process has ended and everything it said has been read. */
  #complete = false;

  constructor(started: LabProcess) {
    this.process = started;
    createInterface({ input: started.child.stdout }).on('line', (line) => {
      if (!line.startsWith('{')) return;
      const value = JSON.parse(line) as JsonMessage | { readonly error: JsonFailure };
      if ('event' in value) this.messages.push(value);
      else this.#failure = value.error;
      this.#wake();
    });
    void started.exited.then(() => {
      // The last lines reach the reader one turn after the pipe has closed.
      setImmediate(() => {
        this.#complete = true;
        this.#wake();
      });
    });
  }

  get pid(): number {
    return this.process.pid;
  }

  /** Why it failed, in its own words. */
  get failure(): JsonFailure | undefined {
    return this.#failure;
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
      if (leftMs <= 0 || this.#complete) {
        throw new Error(
          `waited for ${what}: ${leftMs <= 0 ? `${timeoutMs} ms passed` : 'the process ended'}; ${this.#account()}`,
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

  /** Settles when the process has ended by itself and all it said has been read; rejects at the deadline. */
  async ended(timeoutMs = 30_000): Promise<ProcessEnd> {
    await waitFor('the process to end', () => this.#complete, { timeoutMs, intervalMs: 10 }).catch(
      (error) => {
        throw new Error(`${(error as Error).message}; ${this.#account()}`);
      },
    );
    return await this.process.exited;
  }

  #account(): string {
    const said = this.messages.slice(-5).map((message) => JSON.stringify(message));
    const failure = this.#failure === undefined ? '' : ` ${JSON.stringify(this.#failure)}`;
    return `it said ${said.join(' ')}${failure}; its log ends: ${this.process.stderr.slice(-2_000)}`;
  }

  #wake(): void {
    for (const listener of [...this.#listeners]) listener();
  }
}
