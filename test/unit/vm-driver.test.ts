/** When the VM stands still for the firmware's memory: in a short stop of its own, or in a pause. */
import { writeSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { CancelledError } from '../../lib/errors.js';
import { NoGate } from '../../lib/output/gate.js';
import { VmDriver } from '../../lib/primary/vm-driver.js';
import type { QmpClient } from '../../lib/qmp/client.js';
import { waitFor } from '../lab/wait.js';

let scratchDir: string;

beforeEach(async () => {
  scratchDir = await mkdtemp(join(tmpdir(), 'holdfast-test-'));
});

afterEach(async () => {
  await rm(scratchDir, { recursive: true, force: true });
});

const PREPARED = ['query-migrate-capabilities', 'migrate-set-capabilities', 'getfd'];

const u32 = (value: number): Buffer => Buffer.from(Uint32Array.of(value).buffer).swap32();
const text = (value: string): Buffer => Buffer.concat([Buffer.from([value.length]), Buffer.from(value)]);
/** A migration without a page, up to the type of its first device section. */
const EOS = Buffer.concat([u32(0), u32(0x10)]);
const smallStream = Buffer.concat([
  ...[u32(0x5145564d), u32(3), Buffer.from([7]), u32(10), Buffer.from('pc-q35-7.2')],
  ...[Buffer.from([5]), text('configuration/capabilities'), u32(1), u32(1), text('x-ignore-shared')],
  ...[Buffer.from([1]), u32(3), text('ram'), u32(0), u32(4), u32(0), u32(4), EOS],
  ...[Buffer.from([3]), u32(3), EOS, Buffer.from([4])],
]);

/** Over a QEMU that answers all, and whose migrations write nothing, unless told. */
const driveVm = (vm: {
  readonly running: boolean;
  readonly stoppedByUs: boolean;
  readonly dir?: string;
  /** Written by its migrations. */
  readonly stream?: Uint8Array;
  /** Comes before the answer to `getfd`. */
  readonly event?: 'STOP';
}) => {
  const asked: string[] = [];
  const told: string[] = [];
  const listeners = new Map<string, () => void>();
  const execute = async (command: string) => {
    asked.push(command);
    if (command === 'query-migrate-capabilities') return [{ capability: 'events', state: false }];
    if (command !== 'query-status') return {};
    return { running: vm.running, status: vm.running ? 'running' : 'paused' };
  };
  const qmp = {
    ...{ open: true, execute },
    on: (event: string, listener: () => void) => void listeners.set(event, listener),
    pipeline: (requests: readonly { execute: string }[]) => requests.map((each) => execute(each.execute)),
    passDescriptor: async (_name: string, fd: number) => {
      if (vm.stream !== undefined) writeSync(fd, vm.stream);
      if (vm.event !== undefined) listeners.get(vm.event)?.();
      return await execute('getfd');
    },
    once: async () => ({ event: 'MIGRATION', data: { status: 'completed' } }),
  } as unknown as QmpClient;
  const driver = new VmDriver({
    ...{ qmp, gate: new NoGate(), deviceState: 'xen-save', stoppedByUs: vm.stoppedByUs },
    scratchDir: vm.dir ?? scratchDir,
    guestClock: {
      beforeStop: () => {},
      saved: async () => {},
      beforeCont: () => {},
      standsStill: () => {},
    },
    onOperator: (change) => told.push(change),
  });
  return { driver, asked, told, hear: (event: 'STOP' | 'RESUME') => listeners.get(event)?.() };
};

test('01 the VM stands still for the migration, and for nothing that goes before or comes after it', async () => {
  const { driver, asked } = driveVm({ running: true, stoppedByUs: false });
  await expect(driver.takePrefixAhead()).rejects.toThrow('ends within'); // a stream without a byte
  expect(asked).toEqual([
    ...PREPARED,
    ...['query-status', 'stop', 'migrate', 'query-status', 'cont'],
    'migrate-set-capabilities',
  ]);
});

test('02 a VM that somebody else paused stays so', async () => {
  const { driver, asked, told } = driveVm({ running: false, stoppedByUs: false });
  await expect(driver.takePrefixAhead()).rejects.toThrow(CancelledError);
  expect(asked).toEqual([...PREPARED, 'query-status', 'stop', 'closefd', 'migrate-set-capabilities']);
  expect(told).toEqual(['paused']);
});

test('03 a VM that we stopped, as at a hand-over that came to nothing, goes on', async () => {
  const { driver, asked, told } = driveVm({ running: false, stoppedByUs: true });
  await driver.takePrefixAhead().catch(() => {}); // nothing is written
  expect(asked.slice(PREPARED.length)).toEqual([
    ...['query-status', 'stop', 'migrate', 'query-status', 'cont'],
    'migrate-set-capabilities',
  ]);
  expect(told).toEqual([]);
});

test('04 where the file cannot be made, a VM that runs is not stopped, and one that we stopped goes on', async () => {
  const dir = join(scratchDir, 'missing');
  const running = driveVm({ running: true, stoppedByUs: false, dir });
  await expect(running.driver.takePrefixAhead()).rejects.toThrow('ENOENT');
  expect(running.asked).toEqual([]);
  const stopped = driveVm({ running: false, stoppedByUs: true, dir });
  await expect(stopped.driver.takePrefixAhead()).rejects.toThrow('ENOENT');
  expect(stopped.asked).toEqual(['cont']);
});

test('05 in a pause it is taken beside the capture, when the disks have been switched', async () => {
  const { driver, asked } = driveVm({ running: true, stoppedByUs: false });
  let captured = (): void => {};
  const paused = driver.pause({
    ...{ epoch: 1, installGate: false, takePrefix: true },
    capture: () =>
      new Promise<void>((resolve) => {
        asked.push('capture');
        captured = resolve;
      }),
    switchDisks: async () => {
      await Promise.resolve();
      asked.push('disks');
    },
  });
  paused.catch(() => {});
  await waitFor(
    'the migration',
    () => asked.filter((each) => each === 'migrate-set-capabilities').length === 2,
  );
  captured();
  await expect(paused).rejects.toThrow('ends within');
  expect(asked).toEqual([
    ...PREPARED,
    ...['stop', 'xen-save-devices-state', 'capture', 'disks'],
    ...['migrate', 'query-status', 'migrate-set-capabilities'],
  ]);
});

test('06 what it took is with what was captured, and is what goes before the first device', async () => {
  const { driver } = driveVm({ running: true, stoppedByUs: false, stream: smallStream });
  const paused = await driver.pause({
    ...{ epoch: 1, installGate: false, takePrefix: true },
    capture: async () => 'captured',
  });
  expect(paused).toMatchObject({
    captured: 'captured',
    prefix: { path: join(scratchDir, 'prefix'), bytes: smallStream.length - 1 },
  });
  expect(driver.isStoppedByUs).toBe(true);
});

test('07 a VM that somebody else pauses right before the stop of a pause stays so', async () => {
  const { driver, asked, told } = driveVm({ running: true, stoppedByUs: false, event: 'STOP' });
  const paused = driver.pause({
    ...{ epoch: 1, installGate: false, takePrefix: true },
    capture: async () => expect.unreachable(),
  });
  await expect(paused).rejects.toThrow(CancelledError);
  expect(asked).toEqual([...PREPARED, 'closefd', 'migrate-set-capabilities']);
  expect(told).toEqual(['paused']);
  expect(driver.isStoppedByUs).toBe(false);
});

test('08 a VM that somebody else starts in a pause runs on, also where what we do there stops it once more', async () => {
  const { driver, asked, told, hear } = driveVm({ running: true, stoppedByUs: false });
  const paused = driver.pause({
    ...{ epoch: 1, installGate: false, takePrefix: false },
    capture: async () => {
      hear('RESUME');
      hear('STOP');
    },
  });
  await expect(paused).rejects.toThrow('started by another QMP client');
  expect(driver.isStoppedByUs).toBe(true); // so that it is started
  expect(told.at(-1)).toBe('resumed');
  await driver.resume();
  expect(asked.at(-1)).toBe('cont');
});
