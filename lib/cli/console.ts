/**
 * Where a command's words go. Results and what happens: stdout. Logs, errors
 * and hints: stderr. On a terminal one live status line stays below both.
 *
 * With --json stdout carries one JSON object per line, and nothing else.
 */
import type { WriteStream } from 'node:tty';
import { createLogUpdate } from 'log-update';
import type { HoldfastError } from '../errors.js';

export type JsonObject = Readonly<Record<string, unknown>>;

interface Output {
  write(text: string): unknown;
  readonly isTTY?: boolean;
}

export class CommandConsole {
  readonly json: boolean;
  readonly #out: Output;
  readonly #err: Output;
  readonly #live: ReturnType<typeof createLogUpdate> | undefined;
  #liveText = '';

  constructor(options: { readonly json: boolean; readonly out?: Output; readonly err?: Output }) {
    this.json = options.json;
    this.#out = options.out ?? process.stdout;
    this.#err = options.err ?? process.stderr;
    const terminal = this.#out.isTTY === true && !this.json;
    this.#live = terminal ? createLogUpdate(this.#out as WriteStream, { showCursor: true }) : undefined;
  }

  /** True if live() shows anything. */
  get isLive(): boolean {
    return this.#live !== undefined;
  }

  /** One thing that happened: `text` for a person, or `object` with --json. */
  tell(text: string, object: JsonObject): void {
    this.#aboveLive(() => this.#out.write(`${this.json ? JSON.stringify(object) : text}\n`));
  }

  /** A remark for a person; to stderr, also with --json. */
  hint(text: string): void {
    this.log(`${text}\n`);
  }

  /** What goes on, but somebody should know of. */
  warn({ message, cure }: HoldfastError): void {
    this.hint(`warning: ${message}${cure === undefined ? '' : ` (${cure})`}`);
  }

  /** Whole lines for stderr. */
  log(lines: string): void {
    this.#aboveLive(() => this.#err.write(lines));
  }

  /** Replaces the live text; '' removes it. Nothing happens where there is no terminal. */
  live(text: string): void {
    if (this.#live === undefined || text === this.#liveText) return;
    this.#liveText = text;
    if (text === '') this.#live.clear();
    else this.#live(text);
  }

  /** Leaves the last live text on the screen and ends it. */
  endLive(): void {
    this.#liveText = '';
    this.#live?.done();
  }

  fail(error: HoldfastError): void {
    if (this.json) {
      this.#out.write(`${JSON.stringify({ error: { ...error.toJSON(), exitCode: error.exitCode } })}\n`);
      return;
    }
    this.live('');
    this.#err.write(`error: ${error.message}\n`);
    if (error.cure !== undefined) this.#err.write(`cure: ${error.cure}\n`);
  }

  #aboveLive(write: () => void): void {
    const text = this.#liveText;
    this.live('');
    write();
    this.live(text);
  }
}
