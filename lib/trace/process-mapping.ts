/** Process → vCPU → core: what each guest process got of them. Pure. */
import type { GuestSlice } from './guest-slices.js';
import type { CoreSlice } from './thread-history.js';

export interface ProcessShare {
  readonly pid: number;
  readonly name: string;
  /** It was on a vCPU. */
  readonly onVcpuUs: number;
  /** … and the vCPU on a core: it ran. */
  readonly onCoreUs: number;
  readonly vcpuUs: ReadonlyMap<number, number>;
  readonly coreUs: ReadonlyMap<number, number>;
}

interface Account {
  readonly pid: number;
  readonly name: string;
  onVcpuUs: number;
  onCoreUs: number;
  readonly vcpuUs: Map<number, number>;
  readonly coreUs: Map<number, number>;
}

/**
 * @param coreSlices of each vCPU's thread, by time
 * @returns most time on a vCPU first; an idle vCPU is no process
 */
export const mapProcesses = (
  guest: readonly GuestSlice[],
  coreSlices: ReadonlyMap<number, readonly CoreSlice[]>,
): ProcessShare[] => {
  const accounts = new Map<string, Account>();
  for (const slice of guest) {
    if (slice.tid === 0) continue;
    const { pid, name, vcpu, fromUs, toUs } = slice;
    const key = `${pid} ${name}`;
    let account = accounts.get(key);
    if (account === undefined) {
      account = { pid, name, onVcpuUs: 0, onCoreUs: 0, vcpuUs: new Map(), coreUs: new Map() };
      accounts.set(key, account);
    }
    account.onVcpuUs += toUs - fromUs;
    add(account.vcpuUs, vcpu, toUs - fromUs);
    for (const { core, sharedUs } of overlaps(coreSlices.get(vcpu) ?? [], fromUs, toUs)) {
      account.onCoreUs += sharedUs;
      add(account.coreUs, core, sharedUs);
    }
  }
  return [...accounts.values()].sort((a, b) => b.onVcpuUs - a.onVcpuUs);
};

const add = (sums: Map<number, number>, key: number, value: number): void => {
  sums.set(key, (sums.get(key) ?? 0) + value);
};

const overlaps = function* (
  slices: readonly CoreSlice[],
  fromUs: number,
  toUs: number,
): Generator<{ readonly core: number; readonly sharedUs: number }> {
  for (let index = firstEndingAfter(slices, fromUs); index < slices.length; index += 1) {
    const slice = slices[index]!;
    if (slice.fromUs >= toUs) return;
    yield {
      core: slice.core,
      sharedUs: Math.min(slice.toUs, toUs) - Math.max(slice.fromUs, fromUs),
    };
  }
};

const firstEndingAfter = (slices: readonly CoreSlice[], atUs: number): number => {
  let low = 0;
  let high = slices.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (slices[middle]!.toUs <= atUs) low = middle + 1;
    else high = middle;
  }
  return low;
};
