/** The short stop for the firmware's memory, where somebody else has stopped the VM in the same moment. */
import { expect, test } from 'vitest';
import { CancelledError } from '../../lib/errors.js';
import { NoGate } from '../../lib/output/gate.js';
import { VmDriver } from '../../lib/primary/vm-driver.js';
import type { QmpClient } from '../../lib/qmp/client.js';

test('a VM that was paused already stays so', async () => {
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
    ...{ qmp, gate: new NoGate(), deviceState: 'xen-save', scratchDir: '/nonexistent', stoppedByUs: false },
    guestClock: {
      beforeStop: () => {},
      saved: async () => {},
      beforeCont: () => {},
      standsStill: () => {},
    },
    onOperator: (change) => told.push(change),
  });
  await expect(driver.takePrefixAhead()).rejects.toThrow(CancelledError);
  expect(asked).toEqual(['query-status', 'stop']);
  expect(told).toEqual(['paused']);
});
