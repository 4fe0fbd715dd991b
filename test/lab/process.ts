/** A child process of the lab: its output is kept (bounded), its end can be awaited, it is killed by pid. */

import { type ChildProcessWithoutNullStreams, spawn } from 'node:child_process';

/** What is kept of each output stream: the last characters, so that a chatty process cannot grow us. */
const outputCharactersMax = 1 << 20;

export interface SpawnOptions {
  readonly env?: Readonly<Record<string, string>>;
  readonly cwd?: string;
}

export interface ExecOptions extends SpawnOptions {
  /** Written to the process's standard input, which is then closed. */
  readonly input?: string;
  /** SIGKILL after this time; default 30,000. */
  readonly timeoutMs?: number;
  /** False: return a result with a non-zero code instead of throwing. */
  readonly check?: boolean;
}

export interface ExecResult {
  readonly stdout: string;
  readonly stderr: string;
  /** Exit code; null if a signal ended it. */
  readonly code: number | null;
}

export interface ProcessEnd {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
}

export class LabProcess {
  readonly child: ChildProcessWithoutNullStreams;
  readonly pid: number;
  /** Settles when the process has ended and its output is complete; never rejects. */
  readonly exited: Promise<ProcessEnd>;
  #stdout = '';
  #stderr = '';
  #end: ProcessEnd | undefined;

  private constructor(child: ChildProcessWithoutNullStreams, pid: number) {
    this.child = child;
    this.pid = pid;
    child.stdout.setEncoding('utf8').on('data', (text: string) => {
      this.#stdout = (this.#stdout + text).slice(-outputCharactersMax);
    });
    child.stderr.setEncoding('utf8').on('data', (text: string) => {
      this.#stderr = (this.#stderr + text).slice(-outputCharactersMax);
    });
    // Writing to a process that has just ended is no error of the test's.
    child.stdin.on('error', () => {});
    this.exited = new Promise((resolve) => {
      child.once('exit', (code, signal) => {
        this.#end = { code, signal };
        // A grandchild may hold the pipes open for ever; its output is not this process's.
        const settle = setTimeout(() => {
          child.stdout.destroy();
          child.stderr.destroy();
        }, 500);
        child.once('close', () => {
          clearTimeout(settle);
          resolve({ code, signal });
        });
      });
    });
  }

  /** Starts the program. Throws (rejects) if it can't be executed at all. */
  static async start(
    command: string,
    args: readonly string[],
    options: SpawnOptions = {},
  ): Promise<LabProcess> {
    const child = spawn(command, args, {
      stdio: 'pipe',
      ...(options.cwd === undefined ? {} : { cwd: options.cwd }),
      env: { ...process.env, ...options.env },
    });
    await new Promise<void>((resolve, reject) => {
      child.once('spawn', resolve);
      child.once('error', (error) => reject(new Error(`cannot run ${command}: ${error.message}`)));
    });
    // 'spawn' has been emitted: there is a pid.
    return new LabProcess(child, child.pid!);
  }

  /** How it ended; undefined while it runs. */
  get end(): ProcessEnd | undefined {
    return this.#end;
  }
  get running(): boolean {
    return this.#end === undefined;
  }
  /** The last of its standard output, as text. */
  get stdout(): string {
    return this.#stdout;
  }
  get stderr(): string {
    return this.#stderr;
  }

  /** Sends a signal if it still runs, and waits for its end. Only for signals that end it. */
  async kill(signal: NodeJS.Signals = 'SIGKILL'): Promise<ProcessEnd> {
    // Node knows that the child has been reaped, so the pid can't be another's by now.
    if (this.running) this.child.kill(signal);
    return await this.exited;
  }
}

/** Runs a program to its end. */
export const execToEnd = async (
  command: string,
  args: readonly string[],
  options: ExecOptions = {},
  started: (started: LabProcess) => void = () => {},
): Promise<ExecResult> => {
  const { input, timeoutMs = 30_000, check = true } = options;
  const running = await LabProcess.start(command, args, options);
  started(running);
  running.child.stdin.end(input ?? '');
  let late = false;
  const timer = setTimeout(() => {
    late = true;
    running.child.kill('SIGKILL');
  }, timeoutMs);
  const { code, signal } = await running.exited;
  clearTimeout(timer);
  const { stdout, stderr } = running;
  if (late || (check && code !== 0)) {
    const how = late ? `did not end within ${timeoutMs} ms` : `ended with ${code ?? signal}`;
    throw new Error(`${[command, ...args].join(' ')} ${how}: ${(stderr || stdout).trim().slice(-2000)}`);
  }
  return { stdout, stderr, code };
};
