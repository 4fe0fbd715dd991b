/** `--only NAMES`: the cases of a suite that are wanted, by name; `*` stands for anything. */
import type { WantedCases } from './report.js';

const pattern = (name: string): RegExp =>
  new RegExp(`^${name.replace(/[.+?^${}()|[\]\\]/g, '\\$&').replaceAll('*', '.*')}$`);

export class CaseFilter implements WantedCases {
  /** As given; undefined: every case. */
  readonly names: readonly string[] | undefined;
  readonly #patterns: readonly { readonly name: string; readonly matches: RegExp }[];
  readonly #offered = new Set<string>();
  readonly #used = new Set<string>();

  /** `names` separated by commas. */
  constructor(names?: string) {
    this.names = names
      ?.split(',')
      .map((name) => name.trim())
      .filter((name) => name !== '');
    this.#patterns = (this.names ?? []).map((name) => ({ name, matches: pattern(name) }));
  }

  wants(name: string): boolean {
    this.#offered.add(name);
    return this.names === undefined || this.#matches(name, '');
  }

  wantsNamed(name: string, family: string): boolean {
    this.#offered.add(name);
    return this.#matches(name, family);
  }

  /** What was asked for and does not exist: a misspelt name must not look like an empty result. */
  get unknown(): readonly string[] {
    return (this.names ?? []).filter((name) => !this.#used.has(name));
  }

  /** Every case the suite has. */
  get offered(): readonly string[] {
    return [...this.#offered];
  }

  /** Any of those asked for that begin so. */
  #matches(name: string, begin: string): boolean {
    const matching = this.#patterns.filter(
      ({ name: asked, matches }) => asked.startsWith(begin) && matches.test(name),
    );
    for (const { name: used } of matching) this.#used.add(used);
    return matching.length > 0;
  }
}
