/**
 * Output commit with QEMU's filters: what the guest sent after a checkpoint's boundary leaves when the backup
 * has acknowledged that checkpoint, and not before. The guest counts, and sends each number as a datagram:
 * nothing repeats them, so a number that leaks, is lost or comes twice shows. relay.test.ts asks the same of
 * the packet relay.
 */

import { afterAll, beforeAll, expect, test } from 'vitest';
import { Lab } from '../lab/lab.js';
import { bootRedisGuest, type RunningVm, remainsOf } from './support/lab.js';
import { GuestOutput } from './support/lab-output.js';
import { expectExactRelease, withholdAcknowledgements } from './support/withheld.js';

let lab: Lab;
let vm: RunningVm;
let output: GuestOutput;

beforeAll(async () => {
  lab = await Lab.create({ tag: 'out' });
  vm = await bootRedisGuest(lab);
  output = await GuestOutput.start(lab);
});

afterAll(async () => {
  await lab.close();
  expect(remainsOf(lab)).toEqual([]);
});

test('while no acknowledgement comes nothing leaves; afterwards all of it, in order', async () => {
  expect(await withholdAcknowledgements(lab, vm, output, ['--gate', 'filter-buffer'])).toBe(0);
});

test('without a gate output does leave: the test above can fail', async () => {
  expect(await withholdAcknowledgements(lab, vm, output, ['--gate', 'none'])).toBeGreaterThan(20);
});

test('an acknowledgement releases exactly what its checkpoint explains', async () => {
  await expectExactRelease(lab, vm, output, []);
});
