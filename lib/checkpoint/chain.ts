/** Which layers a checkpoint's RAM is made of, and what becomes of checkpoints beyond those that are kept. Pure. */

/** A checkpoint as far as its place in a chain goes. */
export interface Link {
  readonly epoch: number;
  /** Whose RAM it has its pages over; null: it has all of RAM. */
  readonly parent: number | null;
  /** Given up, and there only because others stand on it. */
  readonly isRetired: boolean;
}

/** Epochs of the layers, bottom first; or the epoch that is missing. */
export type Chain = { readonly layers: readonly number[] } | { readonly missing: number };

export const chainOf = (links: ReadonlyMap<number, Link>, epoch: number): Chain => {
  const layers: number[] = [];
  for (let at: number | null = epoch; at !== null; ) {
    const link = links.get(at);
    // A parent is always older: what says otherwise would go round for ever.
    const below = layers[0];
    if (link === undefined || (below !== undefined && link.epoch >= below)) return { missing: at };
    layers.unshift(at);
    at = link.parent;
  }
  return { layers };
};

export type Upkeep =
  /** More than are to be kept: it is none that can be restored any more. */
  | { readonly kind: 'retire'; readonly epoch: number }
  /** Nothing stands on it. */
  | { readonly kind: 'remove'; readonly epoch: number }
  /** The lower one is retired, and has all of RAM: the upper one's pages go into its file, which becomes the upper one's. */
  | { readonly kind: 'merge'; readonly lower: number; readonly upper: number };

/**
 * The next thing to do, or undefined if nothing is. Done one after the other, each is safe by itself: a
 * checkpoint is given up only when `keep` newer ones can be restored, and a layer goes only when nothing needs it.
 *
 * @param damaged checkpoints that do not count as ones that can be restored
 */
export const nextUpkeep = (
  links: readonly Link[],
  keep: number | undefined,
  damaged: ReadonlySet<number> = new Set(),
): Upkeep | undefined => {
  const byEpoch = new Map(links.map((link) => [link.epoch, link]));
  const isWhole = ({ epoch }: Link): boolean => !damaged.has(epoch) && 'layers' in chainOf(byEpoch, epoch);
  const kept = links.filter(({ isRetired }) => !isRetired).toSorted((a, b) => a.epoch - b.epoch);
  if (keep !== undefined) {
    const restorable = kept.filter(isWhole);
    const oldest = kept[0];
    const newer = restorable.filter(({ epoch }) => epoch > (oldest?.epoch ?? 0));
    if (oldest !== undefined && newer.length >= keep) return { kind: 'retire', epoch: oldest.epoch };
  }
  const retired = links.filter(({ isRetired }) => isRetired).toSorted((a, b) => a.epoch - b.epoch);
  for (const link of retired) {
    const [child, ...others] = links.filter(({ parent }) => parent === link.epoch);
    if (child === undefined) return { kind: 'remove', epoch: link.epoch };
    // What cannot be read must not be written into what can.
    const isSound = !damaged.has(link.epoch) && !damaged.has(child.epoch);
    if (link.parent === null && others.length === 0 && isSound) {
      return { kind: 'merge', lower: link.epoch, upper: child.epoch };
    }
  }
  return undefined;
};
