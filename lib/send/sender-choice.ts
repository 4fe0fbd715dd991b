/**
 * `auto`: how the next pages are sent. Pure, over what the last sends cost.
 *
 *   load ── pages, runs ──► class: fragment size × total size × where the pages are
 *                             │  each class has an incumbent of its own
 *   next(load) ◄──────────────┤  now and then a challenger is measured in turns with it (contest.ts)
 *   observe(cost) ───────────►┘  cheaper by a tenth: it is the incumbent from here on
 *
 * Fragment size gives the first choice, the link says what is not worth trying
 * (a kernel that copies MSG_ZEROCOPY on delivery saves nothing, and does it where
 * no thread's clock sees it), measured cost decides.
 *
 * Exploration is bounded: at most CONTEST_SAMPLES sends of a challenger in
 * CONTEST_GAP_SENDS of a class, once all have been measured. Nobody starves: the
 * challenger is always the one that was measured longest ago.
 */
import type { SenderStrategy } from '../native.js';
import { Contest, type SendCost } from './contest.js';

export const senderStrategies = [
  'copy',
  'sendfile',
  'splice',
  'vmsplice',
  'zerocopy',
  'uring',
] as const satisfies readonly SenderStrategy[];

export type SenderSetting = SenderStrategy | 'auto';

/** Strategies that cannot be used, each with the reason. */
export type UnavailableSenders = ReadonlyMap<SenderStrategy, string>;

export interface SenderChooserOptions {
  /** A strategy: always this one. `auto`: chosen before each send. */
  readonly sender: SenderSetting;
  /** What this host lacks (`unavailableSenders`); never chosen by `auto`. */
  readonly unavailable?: UnavailableSenders;
  /** The peer is on this host (`isLocalPeer`). */
  readonly peerIsLocal?: boolean;
}

/** What is about to be sent. */
export interface SendLoad {
  readonly pages: number;
  /**
   * Stretches of consecutive pages in the memory that is sent from; pages ÷ runs is
   * the fragment size. Staged pages lie side by side, however scattered they were.
   */
  readonly runs: number;
  /** Bytes. */
  readonly pageSize: number;
  /** `direct`: from the memory itself; `staged`: from a copy of it. Not every strategy can do both. */
  readonly source: 'direct' | 'staged';
}

/** What it cost; a SendResult of the native engine is one, with its strategy. */
export interface SendOutcome {
  readonly strategy: SenderStrategy;
  /** All bytes on the wire. */
  readonly bytes: number;
  readonly cpuMs: number;
  readonly ackMs: number;
  /** Page bytes that the kernel copied, and those that it took by reference. */
  readonly copiedBytes: number;
  readonly referenceBytes: number;
}

export interface SenderExplanation {
  /** The incumbent of the latest load's class; a challenger's turn doesn't show. */
  readonly strategy: SenderStrategy;
  /** For a person: why this one. */
  readonly reason: string;
  /** What was measured for loads like the latest, newest figures of each strategy. */
  readonly costs: readonly ({ readonly strategy: SenderStrategy } & SendCost)[];
  /** What is not tried now, and why. */
  readonly excluded: readonly { readonly strategy: SenderStrategy; readonly reason: string }[];
}

/** Page bytes below which one plain write is cheapest, whatever the strategy could save. */
export const SMALL_LOAD_BYTES = 128 << 10;
/** Sends of a class between two contests, once every strategy has had one. */
export const CONTEST_GAP_SENDS = 240;
/** Sends after which a link that copied MSG_ZEROCOPY is tried again: routes change. */
export const LINK_RETRY_SENDS = 4_096;
/** From this share of copied bytes on, a strategy counts as one that copies. */
const COPIED_SHARE_MAX = 0.5;

const FRAGMENT_BYTES = [8 << 10, 32 << 10, 256 << 10] as const;
const TOTAL_BYTES = [1 << 20, 8 << 20] as const;

/** Best first, before anything is measured (figures of DESIGN part 4, and of bench send). */
const PREFERRED_SCATTERED: readonly SenderStrategy[] = [
  'vmsplice',
  'splice',
  'copy',
  'zerocopy',
  'uring',
  'sendfile',
];
const PREFERRED_LONG: readonly SenderStrategy[] = [
  'sendfile',
  'vmsplice',
  'splice',
  'zerocopy',
  'uring',
  'copy',
];

/** What rounds of the base sync use: long runs straight from memory, once. */
export const BASE_STRATEGY: SenderStrategy = 'splice';

/** Of these the kernel says how much it copied after all, and that depends on the link. */
const reportsCopies = (strategy: SenderStrategy): boolean => strategy === 'zerocopy' || strategy === 'uring';

const KERNEL_COPIES = 'the kernel copies MSG_ZEROCOPY on this link';
const PEER_IS_LOCAL = 'the peer is on this host, where the kernel copies MSG_ZEROCOPY';

/** What is known of one class of loads. */
interface LoadClass {
  readonly preferred: readonly SenderStrategy[];
  incumbent: SenderStrategy;
  contest: Contest | undefined;
  sends: number;
  nextContestAt: number;
  /** Number of the class's send at which its last contest began. */
  readonly triedAt: Map<SenderStrategy, number>;
  readonly costs: Map<SenderStrategy, SendCost>;
  /** The incumbent and who it was measured against last, in turns; shown as the reason. */
  shown: { rival: SenderStrategy; incumbentCost: SendCost; rivalCost: SendCost } | undefined;
}

interface Exclusion {
  readonly reason: string;
  /** Number of the send from which on it is tried again. */
  readonly until: number;
}

export class SenderChooser {
  readonly #sender: SenderSetting;
  readonly #unavailable: UnavailableSenders;
  readonly #classes = new Map<string, LoadClass>();
  /** By the link, for all loads. */
  readonly #linkExclusions = new Map<SenderStrategy, Exclusion>();
  /** By the memory the pages are in: `source:strategy`. */
  readonly #sourceExclusions = new Map<string, string>();
  #sends = 0;
  #load: SendLoad | undefined;
  #pending: { readonly strategy: SenderStrategy; readonly of: LoadClass } | undefined;

  constructor(options: SenderChooserOptions) {
    this.#sender = options.sender;
    this.#unavailable = options.unavailable ?? new Map();
    this.relink(options.peerIsLocal ?? false);
  }

  /** Another connection: what was learnt on the last one may not hold on it. */
  relink(peerIsLocal: boolean): void {
    this.#classes.clear();
    this.#linkExclusions.clear();
    this.#sourceExclusions.clear();
    this.#load = undefined;
    this.#pending = undefined;
    if (!peerIsLocal) return;
    for (const strategy of senderStrategies.filter(reportsCopies)) {
      this.#linkExclusions.set(strategy, { reason: PEER_IS_LOCAL, until: Number.POSITIVE_INFINITY });
    }
  }

  /** The strategy for this load. Each call is followed by observe(), unless the send fails. */
  next(load: SendLoad): SenderStrategy {
    this.#load = load;
    this.#pending = undefined;
    if (this.#sender !== 'auto') return this.#sender;
    this.#sends += 1;
    if (isSmall(load)) return 'copy';
    const of = this.#classOf(load);
    of.sends += 1;
    this.#closeContest(of); // a send that failed was not observed
    this.#replaceExcluded(of, load);
    this.#openContest(of, load);
    const strategy = of.contest?.next() ?? of.incumbent;
    this.#pending = { strategy, of };
    return strategy;
  }

  /** The best known for this load, outside of any contest: no observe() follows. */
  best(load: SendLoad): SenderStrategy {
    if (this.#sender !== 'auto') return this.#sender;
    if (isSmall(load)) return 'copy';
    const { incumbent, preferred } = this.#classOf(load);
    return this.#exclusion(incumbent, load.source) === undefined
      ? incumbent
      : this.#firstOf(preferred, load.source);
  }

  observe(outcome: SendOutcome): void {
    const pending = this.#pending;
    this.#pending = undefined;
    if (pending === undefined || outcome.strategy !== pending.strategy) return;
    const { of } = pending;
    // Mostly zero pages, or nearly nothing: the fixed part of the cost would be taken for the rate.
    if (outcome.bytes >= SMALL_LOAD_BYTES) {
      const perMB = 1e6 / outcome.bytes;
      const cost = { cpuMsPerMB: outcome.cpuMs * perMB, ackMsPerMB: outcome.ackMs * perMB };
      of.contest?.add(outcome.strategy, cost);
      this.#excludeIfCopied(outcome);
    }
    this.#closeContest(of);
  }

  explain(): SenderExplanation {
    const load = this.#load;
    const excluded = this.#sender === 'auto' ? this.#excludedNow() : [];
    if (this.#sender !== 'auto') {
      return { strategy: this.#sender, reason: 'as configured', costs: [], excluded };
    }
    if (load === undefined) {
      const strategy = this.#firstOf(PREFERRED_LONG, 'staged');
      return { strategy, reason: withNotes('auto: nothing sent yet', excluded), costs: [], excluded };
    }
    if (isSmall(load)) {
      const reason = `auto: ${pagesText(load.pages)}, too few for anything but a plain write to pay`;
      return { strategy: 'copy', reason: withNotes(reason, excluded), costs: [], excluded };
    }
    const of = this.#classOf(load);
    const costs = [...of.costs].map(([strategy, cost]) => ({ strategy, ...cost }));
    const fragments =
      load.runs === 1
        ? `one fragment of ${pagesText(load.pages)}`
        : `fragments of ${pagesText(load.pages / load.runs)}`;
    const reason = `auto: ${comparison(of) ?? 'first choice, not measured yet'}; ${fragments}`;
    return { strategy: of.incumbent, reason: withNotes(reason, excluded), costs, excluded };
  }

  // --- classes and candidates ------------------------------------------------

  #classOf(load: SendLoad): LoadClass {
    const pageBytes = load.pages * load.pageSize;
    const fragment = rank(pageBytes / load.runs, FRAGMENT_BYTES);
    const key = `${load.source}:${fragment}:${rank(pageBytes, TOTAL_BYTES)}`;
    const known = this.#classes.get(key);
    if (known !== undefined) return known;
    const preferred = fragment < 2 ? PREFERRED_SCATTERED : PREFERRED_LONG;
    const made: LoadClass = {
      preferred,
      incumbent: this.#firstOf(preferred, load.source),
      contest: undefined,
      sends: 0,
      nextContestAt: 0,
      triedAt: new Map(),
      costs: new Map(),
      shown: undefined,
    };
    this.#classes.set(key, made);
    return made;
  }

  #firstOf(preferred: readonly SenderStrategy[], source: SendLoad['source']): SenderStrategy {
    // A host where not even a write works has other worries.
    return preferred.find((strategy) => this.#exclusion(strategy, source) === undefined) ?? 'copy';
  }

  #exclusion(strategy: SenderStrategy, source: SendLoad['source']): string | undefined {
    const lacking = this.#unavailable.get(strategy) ?? this.#sourceExclusions.get(`${source}:${strategy}`);
    if (lacking !== undefined) return lacking;
    const onLink = this.#linkExclusions.get(strategy);
    return onLink !== undefined && this.#sends < onLink.until ? onLink.reason : undefined;
  }

  #excludedNow(): SenderExplanation['excluded'] {
    const source = this.#load?.source ?? 'staged';
    return senderStrategies.flatMap((strategy) => {
      const reason = this.#exclusion(strategy, source);
      return reason === undefined ? [] : [{ strategy, reason }];
    });
  }

  /** Asked for by reference, and not sent so: it would be `copy` by another name. */
  #excludeIfCopied({ strategy, copiedBytes, referenceBytes }: SendOutcome): void {
    const source = this.#load?.source;
    if (strategy === 'copy' || source === undefined) return;
    if (copiedBytes <= COPIED_SHARE_MAX * (copiedBytes + referenceBytes)) return;
    if (reportsCopies(strategy)) {
      // Both answer for the same path through the kernel.
      for (const each of senderStrategies.filter(reportsCopies)) {
        this.#linkExclusions.set(each, { reason: KERNEL_COPIES, until: this.#sends + LINK_RETRY_SENDS });
      }
    } else {
      this.#sourceExclusions.set(`${source}:${strategy}`, 'this memory cannot be sent by reference');
    }
  }

  // --- contests ----------------------------------------------------------------

  #replaceExcluded(of: LoadClass, { source }: SendLoad): void {
    const isExcluded = (strategy: SenderStrategy): boolean => this.#exclusion(strategy, source) !== undefined;
    if (of.contest !== undefined && (isExcluded(of.contest.challenger) || isExcluded(of.incumbent))) {
      of.contest = undefined;
    }
    if (!isExcluded(of.incumbent)) return;
    of.incumbent = this.#firstOf(of.preferred, source);
    of.shown = undefined;
  }

  #openContest(of: LoadClass, { source }: SendLoad): void {
    if (of.contest !== undefined) return;
    const triedAt = (strategy: SenderStrategy): number => of.triedAt.get(strategy) ?? -1;
    const rivals = of.preferred.filter(
      (strategy) => strategy !== of.incumbent && this.#exclusion(strategy, source) === undefined,
    );
    const [first, ...others] = rivals;
    if (first === undefined) return;
    const challenger = others.reduce(
      (oldest, each) => (triedAt(each) < triedAt(oldest) ? each : oldest),
      first,
    );
    if (of.sends < of.nextContestAt && triedAt(challenger) >= 0) return;
    of.contest = new Contest(of.incumbent, challenger);
    of.triedAt.set(of.incumbent, of.sends);
    of.triedAt.set(challenger, of.sends);
  }

  #closeContest(of: LoadClass): void {
    const contest = of.contest;
    const verdict = contest?.verdict() ?? 'open';
    if (contest === undefined || verdict === 'open') return;
    of.contest = undefined;
    of.nextContestAt = of.sends + CONTEST_GAP_SENDS;
    const medians = contest.medians();
    if (medians === undefined) return; // nothing that could be measured
    of.costs.set(contest.incumbent, medians.incumbent);
    of.costs.set(contest.challenger, medians.challenger);
    const won = verdict === 'challenger';
    if (won) of.incumbent = contest.challenger;
    // A comparison with `copy` says most; it stays until another says something of the same incumbent.
    const rival = won ? contest.incumbent : contest.challenger;
    if (!won && of.shown?.rival === 'copy' && rival !== 'copy') return;
    of.shown = {
      rival,
      incumbentCost: won ? medians.challenger : medians.incumbent,
      rivalCost: won ? medians.incumbent : medians.challenger,
    };
  }
}

const isSmall = (load: SendLoad): boolean => load.pages * load.pageSize < SMALL_LOAD_BYTES || load.runs === 0;

/** Index of the first limit above `value`; their number if none is. */
const rank = (value: number, limits: readonly number[]): number => {
  const found = limits.findIndex((limit) => value < limit);
  return found === -1 ? limits.length : found;
};

const pagesText = (pages: number): string => {
  const shown = pages < 10 ? String(+pages.toFixed(1)) : pages.toFixed(0);
  return `${shown} ${shown === '1' ? 'page' : 'pages'}`;
};

const comparison = ({ shown }: LoadClass): string | undefined => {
  if (shown === undefined) return undefined;
  const { rival, incumbentCost, rivalCost } = shown;
  const [cpu, ack, rivalCpu, rivalAck] = [
    incumbentCost.cpuMsPerMB,
    incumbentCost.ackMsPerMB,
    rivalCost.cpuMsPerMB,
    rivalCost.ackMsPerMB,
  ].map((value) => value.toFixed(2));
  return `${cpu} ms CPU and ${ack} ms to the acknowledgement per MB, against ${rivalCpu} and ${rivalAck} of ${rival}`;
};

/** The reasons of what is left out, each once. */
const withNotes = (reason: string, excluded: SenderExplanation['excluded']): string => {
  const byReason = new Map<string, SenderStrategy[]>();
  for (const each of excluded)
    byReason.set(each.reason, [...(byReason.get(each.reason) ?? []), each.strategy]);
  const notes = [...byReason].map(([why, strategies]) => `not ${strategies.join(', ')}: ${why}`);
  return [reason, ...notes].join('; ');
};
