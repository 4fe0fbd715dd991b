/** Asks daemons through their admin sockets. One connection per request. */
import { readdir } from 'node:fs/promises';
import { createConnection } from 'node:net';
import { basename } from 'node:path';
import {
  CancelledError,
  HoldfastError,
  type HoldfastErrorOptions,
  NoDaemonError,
  PeerLostError,
  ProtocolError,
  TimeoutError,
  toHoldfastError,
} from '../errors.js';
import { LineDecoder } from './lines.js';
import {
  type AdminCommand,
  ANSWER_BYTES_MAX,
  adminAnswer,
  adminSocketPath,
  type DaemonStatus,
  daemonStatus,
} from './protocol.js';

export interface AskOptions {
  readonly timeoutMs: number;
  readonly signal?: AbortSignal | undefined;
}

/** An error that a daemon answered with: its code, message, cure and exit code are the daemon's. */
export class DaemonError extends HoldfastError {
  override readonly code: string;
  override readonly exitCode: number;

  constructor(message: string, options: HoldfastErrorOptions & { code: string; exitCode: number }) {
    super(message, options);
    this.code = options.code;
    this.exitCode = options.exitCode;
  }
}

/**
 * Sends one command and waits for its result.
 * @throws NoDaemonError, DaemonError (what the daemon answered), TimeoutError, PeerLostError,
 *         ProtocolError, CancelledError
 */
export const askDaemon = (path: string, command: AdminCommand, options: AskOptions): Promise<unknown> =>
  new Promise((resolve, reject) => {
    const name = basename(path, '.sock');
    const socket = createConnection({ path });
    const decoder = new LineDecoder(ANSWER_BYTES_MAX);
    const timer = setTimeout(() => {
      end(
        new TimeoutError(`${command}: '${name}' did not answer within ${options.timeoutMs} ms`, {
          cure: 'It may still do what was asked; `holdfast status` shows. --timeout waits longer.',
        }),
      );
    }, options.timeoutMs);
    const onAbort = (): void => end(new CancelledError(`${command} was cancelled`));
    const end = (outcome: HoldfastError | { readonly result: unknown }): void => {
      clearTimeout(timer);
      options.signal?.removeEventListener('abort', onAbort);
      socket.destroy();
      if (outcome instanceof HoldfastError) reject(outcome);
      else resolve(outcome.result);
    };
    options.signal?.addEventListener('abort', onAbort, { once: true });
    if (options.signal?.aborted) onAbort();
    socket.on('connect', () => socket.write(`${JSON.stringify({ id: 1, command })}\n`));
    socket.on('data', (chunk: Buffer) => {
      try {
        const [line] = decoder.push(chunk);
        if (line !== undefined) end(parseAnswer(line, name));
      } catch (error) {
        end(error instanceof HoldfastError ? error : new ProtocolError(String(error)));
      }
    });
    socket.on('error', (error: NodeJS.ErrnoException) => {
      end(
        error.code === 'ENOENT' || error.code === 'ECONNREFUSED'
          ? noDaemon(name, path)
          : new PeerLostError(`'${name}': ${error.message} (${path})`, {
              cause: error,
              ...(error.code === 'EACCES' ? { cure: 'Run this as the user that runs the daemon.' } : {}),
            }),
      );
    });
    socket.on('close', () => end(new PeerLostError(`'${name}' ended before it answered`)));
  });

const noDaemon = (name: string, path: string): NoDaemonError =>
  new NoDaemonError(`no daemon named '${name}' runs here (${path})`, {
    cure: '`holdfast status` lists those that do; --run-dir must be the one they were started with.',
  });

/** @throws DaemonError, ProtocolError */
const parseAnswer = (line: string, name: string): { readonly result: unknown } => {
  let value: unknown;
  try {
    value = JSON.parse(line);
  } catch {
    throw new ProtocolError(`'${name}' answered what is not JSON`);
  }
  const parsed = adminAnswer.safeParse(value);
  if (!parsed.success) throw new ProtocolError(`'${name}' answered what is not understood`);
  const answer = parsed.data;
  if (answer.ok) return { result: answer.result };
  const { code, message, cure, details, exitCode } = answer.error;
  throw new DaemonError(message, { code, exitCode, details, ...(cure === undefined ? {} : { cure }) });
};

/** @throws as askDaemon does */
export const askStatus = async (path: string, options: AskOptions): Promise<DaemonStatus> => {
  const parsed = daemonStatus.safeParse(await askDaemon(path, 'status', options));
  if (parsed.success) return parsed.data;
  const [issue] = parsed.error.issues;
  throw new ProtocolError(
    `'${basename(path, '.sock')}': status.${issue?.path.map(String).join('.')}: ${issue?.message}`,
    { cure: 'Is the daemon of another version than this command?' },
  );
};

/** Names whose sockets are in the run directory, live or not; none if there is no such directory. */
export const daemonNames = async (runDir: string): Promise<readonly string[]> => {
  const entries = await readdir(runDir).catch(() => [] as string[]);
  return entries
    .filter((entry) => entry.endsWith('.sock'))
    .map((entry) => entry.slice(0, -'.sock'.length))
    .sort();
};

/** A daemon that holds a name: its status, or why it could not be asked. */
export type DaemonView =
  | { readonly name: string; readonly status: DaemonStatus }
  | { readonly name: string; readonly error: HoldfastError };

/** Looks at these daemons, or at all of the run directory. Sockets of dead daemons are passed over then. */
export const viewDaemons = async (
  runDir: string,
  options: AskOptions,
  names?: readonly string[],
): Promise<readonly DaemonView[]> => {
  const views = await Promise.all(
    (names ?? (await daemonNames(runDir))).map(async (name): Promise<DaemonView> => {
      try {
        return { name, status: await askStatus(adminSocketPath(runDir, name), options) };
      } catch (error) {
        return { name, error: toHoldfastError(error) };
      }
    }),
  );
  return names === undefined
    ? views.filter((view) => !('error' in view && view.error instanceof NoDaemonError))
    : views;
};
