/** A VM that QEMU has stopped for a disk: when that is told, and when it may go on. */
import { EventEmitter } from 'node:events';
import { setTimeout as delay } from 'node:timers/promises';
import { describe, expect, it } from 'vitest';
import { NOTHING_LOGGED } from '../../lib/log.js';
import {
  type IoErrorStop,
  IoErrorWatch,
  type IoErrorWatchOptions,
  stopCure,
  stopText,
} from '../../lib/primary/io-error-watch.js';
import { waitFor } from '../lab/wait.js';

const image = '/srv/a.raw';
const full: IoErrorStop = { id: 'vda', image, isFull: true, goesOnByItself: true };

const setUp = () => {
  const world = { status: 'running', ioStatus: 'ok', freeBytes: 0 as number | undefined, asked: 0 };
  const told: string[] = [];
  const events = new EventEmitter();
  const qmp = {
    on: events.on.bind(events),
    pipeline: () => {
      world.asked += 1;
      const block = { device: 'drive0', removable: false, 'io-status': world.ioStatus };
      return [
        Promise.resolve({ status: world.status, running: world.status === 'running' }),
        Promise.resolve([{ device: 'cd', removable: true }, block]),
      ];
    },
  } as unknown as IoErrorWatchOptions['qmp'];
  const watch = new IoErrorWatch({
    qmp,
    drives: [{ name: 'drive0', file: 'nbd+unix:…', server: { id: 'vda', imagePath: image } as never }],
    idle: async () => {},
    log: NOTHING_LOGGED,
    onStopped: (stop) => told.push(`stopped: ${stopText(stop)}`),
    onRoom: () => told.push('room'),
    onGoesOn: () => told.push('goes on'),
    freeBytesOf: async () => world.freeBytes,
    roomWatchMs: 1,
  });
  const fail = (ioStatus: string): void => {
    events.emit('BLOCK_IO_ERROR', { data: { action: 'stop' } });
    Object.assign(world, { status: 'io-error', ioStatus });
    events.emit('STOP', { data: {} });
  };
  return { world, told, events, watch, fail };
};

describe('a VM that stopped itself for a disk', () => {
  it('is told of once, with the disk, and goes on when there is room', async () => {
    const { world, told, events, watch, fail } = setUp();
    fail('nospace');
    fail('nospace'); // of another request
    await waitFor('the stop', () => watch.stop !== undefined);
    expect(watch.stop).toEqual(full);
    world.freeBytes = 1 << 19; // not worth a try
    await delay(20);
    expect(told).toEqual([`stopped: its disk vda, ${image}, is full`]);
    world.freeBytes = 1 << 20;
    await waitFor('the room to be seen', () => told.includes('room'));
    events.emit('RESUME', { data: {} });
    expect(watch.stop).toBeUndefined();
    expect(told.at(-1)).toBe('goes on');
    const { length } = told;
    await delay(20);
    expect(told).toHaveLength(length);
  });

  it('is not one that goes on at once, nor one whose guest is told of the error', async () => {
    const { world, told, events, watch, fail } = setUp();
    events.emit('BLOCK_IO_ERROR', { data: { action: 'report' } });
    expect(world.asked).toBe(0);
    fail('nospace');
    world.status = 'running'; // by a pause of ours that began before
    events.emit('RESUME', { data: {} });
    await waitFor('QEMU to be asked', () => world.asked >= 2);
    await delay(20);
    expect(watch.stop).toBeUndefined();
    expect(told).toEqual([]);
  });

  it('needs somebody where nothing tells of room', async () => {
    const { world, told, watch, fail } = setUp();
    world.freeBytes = undefined;
    fail('failed');
    await waitFor('the stop', () => watch.stop !== undefined);
    expect(watch.stop).toEqual({ ...full, isFull: false, goesOnByItself: false });
    expect(told).toEqual([`stopped: its disk vda, ${image}, fails with I/O errors`]);
    expect(stopCure(watch.stop!)).toMatch(/^Mend it, `holdfast detach`, then QMP `cont`.*switchover/);
    expect(stopCure(full)).toMatch(/^Make room.*by itself.*switchover/);
    watch.end();
  });
});
