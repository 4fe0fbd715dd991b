/** Where guest-physical memory lies in the VM's RAM file. */
import { UnsupportedVmError } from '../errors.js';
import type { PhysicalRange } from './binding.js';

/**
 * HMP `info mtree -f`: the flat view of the address space `memory`, of which the
 * ranges that are backed by this memory backend count. RAM above 4 GiB begins where
 * the RAM below the PCI hole ended.
 * @throws UnsupportedVmError if there is none
 */
export const parsePhysicalRanges = (tree: string, backend: string): PhysicalRange[] => {
  const view = tree.split(/^FlatView #/m).find((text) => /^\s*AS "memory",/m.test(text)) ?? '';
  const ranges: PhysicalRange[] = [];
  for (const line of view.split(/\r?\n/)) {
    const match =
      /^\s*([0-9a-f]{16})-([0-9a-f]{16}) \(prio -?\d+, (?:ram|rom)\): (\S+)(?: @([0-9a-f]{16}))?/.exec(line);
    if (match === null) continue;
    const [, first, last, name, offset = '0'] = match;
    if (name!.split('/').at(-1) !== backend) continue;
    const start = Number.parseInt(first!, 16);
    ranges.push({
      start,
      bytes: Number.parseInt(last!, 16) - start + 1,
      ramOffset: Number.parseInt(offset, 16),
    });
  }
  if (ranges.length > 0) return merged(ranges);
  throw new UnsupportedVmError(`QEMU's memory map does not show where the RAM '${backend}' lies`, {
    cure: 'Trace without --guest.',
  });
};

/** Neighbours in both address and offset are one: firmware shadows cut RAM into pieces. */
const merged = (ranges: readonly PhysicalRange[]): PhysicalRange[] => {
  const result: PhysicalRange[] = [];
  for (const range of ranges) {
    const last = result.at(-1);
    const continues =
      last !== undefined &&
      last.start + last.bytes === range.start &&
      last.ramOffset + last.bytes === range.ramOffset;
    if (continues) result[result.length - 1] = { ...last, bytes: last.bytes + range.bytes };
    else result.push(range);
  }
  return result;
};
