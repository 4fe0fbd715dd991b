/** Reserved huge pages: what a hugetlbfs can give. Its own statfs knows only the limit it was mounted with. */

import { readFile } from 'node:fs/promises';

export interface HugePages {
  readonly freeBytes: number;
  readonly totalBytes: number;
}

/** @param pageBytes size of a page, as statfs of the hugetlbfs gives it (bsize) */
export const reservedHugePages = async (pageBytes: number): Promise<HugePages> => {
  const dir = `/sys/kernel/mm/hugepages/hugepages-${pageBytes / 1024}kB`;
  const read = async (name: string): Promise<number> =>
    pageBytes * Number(await readFile(`${dir}/${name}`, 'utf8'));
  const [free, promised, total] = await Promise.all([
    read('free_hugepages'),
    read('resv_hugepages'),
    read('nr_hugepages'),
  ]);
  return { freeBytes: free - promised, totalBytes: total };
};
