/** The short stop for the firmware's memory, of a VM that stands still already. */
import { expect, test } from 'vitest';
import { CancelledError } from '../../lib/errors.js';
import { NoGate } from '../../lib/output/gate.js';
import { VmDriver } from '../../lib/primary/vm-driver.js';
import type { QmpClient } from '../../lib/qmp/client.js';

/** Over a QEMU whose VM is paused. */
const drivePausedVm = ({ stoppedByUs }: { readonly stoppedByUs: boolean }) => {
  const asked: string[] = [];
  const told: string[] = [];
  const qmp = {
    on: () => () => {},
    execute: async (command: string) => {
      asked.push(command);
      return command === 'query-status' ? { running: false, status: 'paused' } : {};
    },
  } as unknown as QmpClient;
  const driver = new VmDriver({
    ...{ qmp, gate: new NoGate(), deviceState: 'xen-save', scratchDir: '/nonexistent', stoppedByUs },
    guestClock: {
      beforeStop: () => {},
      saved: async () => {},
      beforeCont: () => {},
      standsStill: () => {},
    },
    onOperator: (change) => told.push(change),
  });
  return { driver, asked, told };
};

test('a VM that somebody else paused stays so', async () => {
  const { driver, asked, told } = drivePausedVm({ stoppedByUs: false });
  await expect(driver.takePrefixAhead()).rejects.toThrow(CancelledError);
  expect(asked).toEqual(['query-status', 'stop']);
  expect(told).toEqual(['paused']);
});

test('a VM that we stopped, as at a hand-over that came to nothing, goes on', async () => {
  const { driver, asked, told } = drivePausedVm({ stoppedByUs: true });
  await driver.takePrefixAhead().catch(() => {}); // there is no QEMU that writes the file
  expect(asked.slice(0, 2)).toEqual(['query-status', 'stop']);
  expect(asked.at(-1)).toBe('cont');
  expect(told).toEqual([]);
});
