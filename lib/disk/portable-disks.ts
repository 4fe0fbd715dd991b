/**
 * What a disk's socket is called in the arguments that a primary sends to its backup: by the disk's id. No
 * path of one host means anything on the other.
 */
export const portableSocketOf = (id: string): string => `holdfast-disk:${id}`;
