/**
 * Text-driven tests of the pure machines, in the manner of etcd raft's
 * datadriven tests: a file is a list of blocks,
 *
 *   # what this shows
 *   event key=value …        one or more events
 *   ----
 *   event: state [flags]     what the machine became, once per event
 *     action key=value …     what it asked for
 *
 * separated by blank lines. `new primary …` and `new backup …` begin anew; with
 * `protected` they begin where the first checkpoint stands (epoch 1 committed,
 * output released, no epoch under way), without tracing how they came there. The
 * files are documentation of the machines first, so the rendering is for
 * people: only what is not at its resting value is shown.
 */
import * as backup from '../../lib/backup/machine.js';
import * as primary from '../../lib/primary/machine.js';

type Value = string | number | boolean;
export type Words = Readonly<Record<string, Value>>;

/** `name key=value key="two words" flag`: numbers and yes/no are converted. */
export const parseLine = (line: string): { readonly name: string; readonly words: Words } => {
  const [name = '', ...rest] = line.trim().split(/\s+/);
  const words: Record<string, Value> = {};
  for (const flag of rest) if (/^[\w-]+$/.test(flag)) words[flag] = true;
  for (const match of rest.join(' ').matchAll(/([\w-]+)=("([^"]*)"|\S+)/g)) {
    const [, key = '', raw = '', quoted] = match;
    words[key] =
      quoted ??
      (raw === 'yes' ? true : raw === 'no' ? false : /^-?\d+(\.\d+)?$/.test(raw) ? Number(raw) : raw);
  }
  return { name, words };
};

const render = (fields: Readonly<Record<string, unknown>>): string =>
  Object.entries(fields)
    .filter(([, value]) => value !== undefined && value !== false && value !== '')
    .map(([key, value]) => {
      const name = key.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`);
      if (value === true) return name;
      return typeof value === 'string' && /\s/.test(value)
        ? `${name}="${value}"`
        : `${name}=${String(value)}`;
    })
    .join(' ');

/** A machine behind the text: takes a parsed event, gives the lines of the trace. */
export interface Traced {
  apply(name: string, words: Words): readonly string[];
}

const failure = (words: Words): { code: string; message: string } => ({
  code: String(words.code ?? 'HOLDFAST_E_PEER_LOST'),
  message: String(words.message ?? 'unreachable'),
});

export class TracedPrimary implements Traced {
  #state: primary.PrimaryState;

  constructor(words: Words) {
    this.#state = primary.initialState(
      {
        onBackupLost: words.policy === 'release' ? 'release' : 'hold',
        retryMs: 1000,
        captureFailuresMax: 3,
        // Enough for the machine's part: two rounds.
        purpose:
          words.migrate === true
            ? {
                kind: 'migrate',
                afterRound: afterRound(Number(words['rounds-max'] ?? 3), words['post-copy'] === true),
                atOnce: words['at-once'] === true,
              }
            : { kind: 'protect', convergence: (rounds) => rounds.length >= 2 },
      },
      {
        term: Number(words.term ?? 1),
        hasDisks: words.disks === true,
        gateAdopted: words['gate-adopted'] === true,
        operatorPaused: words['operator-paused'] === true,
        ioError: words['io-error'] === true,
        vmStopped: words['vm-stopped'] === true,
      },
    );
    if (words.protected !== true) return;
    for (const line of firstEpoch) {
      if (line !== 'disks-copied' || words.disks === true) this.#trace(line);
    }
  }

  #trace(line: string): void {
    const { name, words } = parseLine(line);
    this.apply(name, words);
  }

  apply(name: string, words: Words): readonly string[] {
    const [next, actions] = primary.step(this.#state, primaryEvent(name, words));
    this.#state = next;
    return [`${name}: ${describePrimary(next)}`, ...actions.map(describePrimaryAction)];
  }
}

const afterRound =
  (roundsMax: number, postCopy: boolean): primary.AfterRound =>
  (rounds) => {
    if (rounds.length >= roundsMax) return { code: 'HOLDFAST_E_LIMIT', message: 'not converged' };
    if (rounds.length < 2) return 'next-round';
    return postCopy ? 'post-copy' : 'stop-and-copy';
  };

const firstEpoch = [
  'start',
  'connected',
  'disks-copied',
  'round-done pages=131072',
  'round-done pages=900',
  'captured epoch=1 mode=staged',
  'resumed',
  'acked epoch=1',
  'released epoch=1',
];

const primaryEvent = (name: string, words: Words): primary.PrimaryEvent => {
  const epoch = Number(words.epoch ?? 0);
  switch (name) {
    case 'round-done': {
      const pages = Number(words.pages ?? 0);
      const round = { pages, zeroPages: 0, bytes: pages * 4096, roundMs: 2, dirtyPages: 0 };
      return { type: name, round: { ...round, scanMs: 1, sendMs: 1 } };
    }
    case 'captured':
      return { type: name, epoch, mode: words.mode === 'direct' ? 'direct' : 'staged' };
    case 'capture-failed':
      return { type: name, epoch, failure: failure(words) };
    case 'acked':
    case 'released':
      return { type: name, epoch };
    case 'connect-failed':
    case 'lost-there':
    case 'takeover-failed':
    case 'failed':
    case 'give-up':
    case 'pages-lost':
      return { type: name, failure: failure(words) };
    case 'pages-served':
      return { type: name, downtimeMs: 30 };
    case 'fenced':
      return { type: name, term: Number(words.term), message: 'the backup took over' };
    case 'backup-lost':
      return { type: name, reason: String(words.reason ?? 'silent') };
    case 'took-over':
      return { type: name, term: Number(words.term), epoch, resumeMs: 5, downtimeMs: 9 };
    case 'vm-gone':
      return { type: name, ended: words.ended === true, reason: String(words.reason ?? 'killed') };
    case 'tick':
      return { type: name, trigger: trigger(words) };
    case 'start':
    case 'connected':
    case 'disks-copied':
    case 'resumed':
    case 'loss-entered':
    case 'retry':
    case 'vm-reset':
    case 'vm-paused':
    case 'vm-resumed':
    case 'vm-io-error':
    case 'disk-has-room':
    case 'switchover':
    case 'detach':
      return { type: name };
    default:
      throw new Error(`no such event of the primary: ${name}`);
  }
};

const trigger = ({ trigger }: Words): primary.EpochTrigger =>
  trigger === 'output' || trigger === 'dirty' || trigger === 'disk' ? trigger : 'interval';

const describePrimary = (state: primary.PrimaryState): string => {
  const { phase } = state;
  const flags = render({
    term: state.term === 1 ? undefined : state.term,
    committed: state.committed === 0 ? undefined : state.committed,
    held: state.gateInstalled,
    stopped: state.vmStopped,
    paused: state.operatorPaused,
    ioError: state.ioError,
    mustHold: state.mustHold,
    failures: state.captureFailures === 0 ? undefined : state.captureFailures,
    pending: state.pending === 'none' ? undefined : state.pending,
  });
  const suffix = flags === '' ? '' : ` [${flags}]`;
  switch (phase.name) {
    case 'protected': {
      const { at, ...cycle } = phase.cycle;
      const detail = render({ ...cycle, due: phase.due, lost: phase.lost });
      return `protected, ${at}${detail === '' ? '' : ` ${detail}`}${suffix}`;
    }
    case 'waiting':
      return `waiting${phase.entering ? ' (entering)' : ''}${phase.detachAsked ? ' (detach asked)' : ''}${suffix}`;
    case 'ended':
      return `ended, ${phase.outcome.kind}${suffix}`;
    case 'syncing':
      return `syncing ${phase.copyingDisks ? 'disks' : `rounds=${phase.rounds.length}`}${suffix}`;
    case 'connecting':
      return `connecting${suffix}`;
  }
};

const describePrimaryAction = (action: primary.PrimaryAction): string => {
  const { type, ...fields } = action;
  if (action.type === 'finish')
    return `  finish ${action.outcome.kind} release=${action.release ? 'yes' : 'no'}`;
  const text = render(fields as Record<string, unknown>);
  return `  ${type}${text === '' ? '' : ` ${text}`}`;
};

export class TracedBackup implements Traced {
  #state: backup.BackupState;

  constructor(words: Words) {
    this.#state = backup.initialState({
      takeover: words.takeover === 'manual' ? 'manual' : 'auto',
      connectionGraceMs: Number(words['connection-grace'] ?? 0),
      reconnectGraceMs: Number(words['reconnect-grace'] ?? 5000),
    });
    if (words.protected === true) {
      this.apply('session-requested', {
        vm: 'vm-a',
        g: 1,
        'hand-over-only': words['hand-over-only'] === true,
        'may-lack-pages': words['may-lack-pages'] === true,
      });
      this.apply('prepared', { g: 1 });
      this.apply('committed', { g: 1, epoch: 1 });
    }
  }

  apply(name: string, words: Words): readonly string[] {
    const [next, actions] = backup.step(this.#state, backupEvent(name, words));
    this.#state = next;
    return [`${name}: ${describeBackup(next)}`, ...actions.map(describeBackupAction)];
  }
}

const backupEvent = (name: string, words: Words): backup.BackupEvent => {
  const generation = Number(words.g ?? 1);
  const epoch = Number(words.epoch ?? 0);
  const reason = String(words.reason ?? 'connection closed');
  switch (name) {
    case 'session-requested':
      return {
        type: name,
        generation,
        vmId: String(words.vm ?? 'vm-a'),
        term: Number(words.term ?? 1),
        outputHeld: words.held === true,
        handOverOnly: words['hand-over-only'] === true,
        mayLackPages: words['may-lack-pages'] === true,
      };
    case 'prepare-failed':
      return { type: name, generation, failure: failure(words) };
    case 'committed':
      return { type: name, generation, epoch };
    case 'switchover': {
      const wait = words['pages-wait-ms'];
      return { type: name, generation, epoch, ...(wait === undefined ? {} : { pagesWaitMs: Number(wait) }) };
    }
    case 'primary-lost':
      return { type: name, generation, silent: words.silent === true, reason };
    case 'vm-lost':
    case 'protection-ended':
      return { type: name, generation, reason };
    case 'prepared':
    case 'primary-reconnecting':
      return { type: name, generation };
    case 'took-over':
      return { type: name, epoch };
    case 'takeover-failed':
      return { type: name, failure: failure(words) };
    case 'vm-exited':
      return { type: name, reason };
    case 'grace-over':
    case 'takeover-requested':
      return { type: name };
    default:
      throw new Error(`no such event of the backup: ${name}`);
  }
};

const describeBackup = (state: backup.BackupState): string => {
  const flags = render({
    vm: state.vm?.vmId,
    term: state.vm?.term,
    checkpoint: state.checkpoint && `g${state.checkpoint.generation}/${state.checkpoint.epoch}`,
    receiving: state.receiving && `g${state.receiving}`,
    handOverOnly: state.handOverOnly,
    mayLackPages: state.mayLackPages,
  });
  const failed = state.phase.name === 'ended' && state.phase.failure !== undefined ? ' (failed)' : '';
  return `${state.phase.name}${failed}${flags === '' ? '' : ` [${flags}]`}`;
};

const describeBackupAction = (action: backup.BackupAction): string => {
  const fields: Record<string, unknown> = { ...action };
  delete fields.type;
  if (fields.generation !== undefined) fields.generation = `g${String(fields.generation)}`;
  if (fields.abandon !== undefined) fields.abandon = `g${String(fields.abandon)}`;
  if ('failure' in action) fields.failure = `${action.failure.code}: ${action.failure.message}`;
  const text = render(fields);
  return `  ${action.type}${text === '' ? '' : ` ${text}`}`;
};

/** Runs a file's blocks; the result is the file with the outputs that really came. */
export const replay = (text: string): string => {
  let machine: Traced | undefined;
  const out: string[] = [];
  for (const block of text.trimEnd().split(/\n{2,}/)) {
    const [head = ''] = block.split(/^----$/m);
    const lines = head.trimEnd().split('\n');
    const events = lines.filter((line) => line.trim() !== '' && !line.startsWith('#'));
    if (events.length === 0) {
      out.push(lines.join('\n'));
      continue;
    }
    const trace: string[] = [];
    for (const event of events) {
      const { name, words } = parseLine(event);
      if (name === 'new') {
        machine = words.backup === true ? new TracedBackup(words) : new TracedPrimary(words);
        continue;
      }
      if (machine === undefined) throw new Error(`the file must begin with "new primary" or "new backup"`);
      trace.push(...machine.apply(name, words));
    }
    out.push(trace.length === 0 ? lines.join('\n') : `${lines.join('\n')}\n----\n${trace.join('\n')}`);
  }
  return `${out.join('\n\n')}\n`;
};
