/** Where checkpoint-child.ts can kill itself, in the order in which a run comes by. */
export const crashPoints = [
  'round',
  'paused',
  'finished',
  'disk-copied',
  'published',
  'retire',
  'merge',
  'merging',
  'merged',
  'remove',
] as const;
export type CrashPoint = (typeof crashPoints)[number];
