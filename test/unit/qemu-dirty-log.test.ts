import { expect, it } from 'vitest';
import { losesWrites } from '../../lib/migrate/qemu-dirty-log.js';

const MIB = 1 << 20;

it.each([
  ['TCG before 9', { kvm: false, qemuMajor: 7, ramBlockBytes: [512 * MIB] }, true],
  ['one block of several', { kvm: false, qemuMajor: 8, ramBlockBytes: [8192, 512 * MIB] }, true],
  ['KVM', { kvm: true, qemuMajor: 7, ramBlockBytes: [512 * MIB] }, false],
  ['fixed', { kvm: false, qemuMajor: 9, ramBlockBytes: [512 * MIB] }, false],
  [
    'of a size that goes page by page',
    { kvm: false, qemuMajor: 7, ramBlockBytes: [512 * MIB + 8192] },
    false,
  ],
])("writes that QEMU's dirty log loses: %s", (_, facts, expected) => {
  expect(losesWrites(facts)).toBe(expected);
});
