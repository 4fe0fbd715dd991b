/** Who stopped the VM while QEMU migrates it: the events are the same, and only one of the two means that it moves. */
import { EventEmitter } from 'node:events';
import { describe, expect, it } from 'vitest';
import { migrateWithQemu, StoppedMeanwhileError } from '../../lib/migrate/qemu-engine.js';
import type { QmpClient } from '../../lib/qmp/client.js';

type Migration = 'none' | 'active' | 'completed' | 'cancelled';

const RAM = {
  'page-size': 4_096,
  normal: 1_000,
  duplicate: 10,
  transferred: 4_096_000,
  remaining: 40_960_000,
  'dirty-sync-count': 1,
};

/** As much of a source's QEMU as the engine sees. */
class FakeQemu {
  readonly open = true;
  readonly greeting = { version: { qemu: { major: 9, minor: 0, micro: 0 } } };
  readonly executed: string[] = [];
  readonly #events = new EventEmitter();
  status = 'running';
  migration: Migration = 'none';
  /** Called at each look at the migration, with its number. */
  onLook = (_look: number): void => {};
  #looks = 0;

  on(_event: string, listener: (event: { event: string }) => void): () => void {
    this.#events.on('event', listener);
    return () => void this.#events.off('event', listener);
  }

  pipeline(commands: readonly { execute: string }[]): Promise<unknown>[] {
    return commands.map(({ execute }) => this.execute(execute));
  }

  async execute(command: string): Promise<unknown> {
    this.executed.push(command);
    switch (command) {
      case 'query-kvm':
        return { enabled: true };
      case 'query-memdev':
      case 'query-migrate-capabilities':
        return [];
      case 'query-migrate-parameters':
        return { 'max-bandwidth': 1, 'downtime-limit': 300 };
      case 'query-status':
        return { status: this.status, running: this.status === 'running' };
      case 'migrate':
        this.migration = 'active';
        return {};
      case 'query-migrate':
        this.#looks += 1;
        if (this.migration === 'active') this.onLook(this.#looks);
        return { status: this.migration, ram: RAM };
      case 'migrate_cancel':
        if (this.migration === 'active') this.migration = 'cancelled';
        return {};
      case 'cont':
        this.status = 'running';
        return {};
      default:
        return {};
    }
  }

  /** By somebody, or by QEMU for the end of the migration. */
  stop(status: 'paused' | 'finish-migrate'): void {
    this.status = status;
    this.#events.emit('event', { event: 'STOP' });
  }

  resume(): void {
    this.status = 'running';
    this.#events.emit('event', { event: 'RESUME' });
  }

  complete(): void {
    this.migration = 'completed';
    this.status = 'postmigrate';
  }
}

const migrate = async (qemu: FakeQemu) => {
  const told: string[] = [];
  const target = {
    uri: 'unix:/nowhere',
    resume: async () => void told.push('resume'),
    abandon: async () => void told.push('abandon'),
    [Symbol.asyncDispose]: async () => {},
  };
  const moved = await migrateWithQemu({
    qmp: qemu as unknown as QmpClient,
    target,
    policy: () => ({ step: 'next-round', expectedDowntimeMs: 100, reason: 'one more' }),
    downtimeMs: 10,
  }).then(
    () => true,
    (error: unknown) => error,
  );
  return { moved, told };
};

describe('while QEMU migrates a VM', () => {
  it('its own stop is the switchover', async () => {
    const qemu = new FakeQemu();
    qemu.onLook = (look) => {
      if (look === 1) qemu.stop('finish-migrate');
      else qemu.complete();
    };
    expect(await migrate(qemu)).toEqual({ moved: true, told: ['resume'] });
    expect(qemu.status).toBe('postmigrate');
  });

  it("somebody else's leaves it where it is, stopped", async () => {
    const qemu = new FakeQemu();
    qemu.onLook = (look) => {
      if (look === 2) qemu.stop('paused');
    };
    const { moved, told } = await migrate(qemu);
    expect(moved).toBeInstanceOf(StoppedMeanwhileError);
    expect(moved).toMatchObject({ code: 'HOLDFAST_E_CANCELLED' });
    expect(told).toEqual(['abandon']);
    expect(qemu.executed).toContain('migrate_cancel');
    expect(qemu.executed).not.toContain('cont');
    expect(qemu.status).toBe('paused');
  });

  it('also where all has arrived before that was noticed', async () => {
    const qemu = new FakeQemu();
    qemu.onLook = (look) => {
      if (look !== 2) return;
      qemu.stop('paused');
      qemu.migration = 'completed';
    };
    const { moved, told } = await migrate(qemu);
    expect(moved).toBeInstanceOf(StoppedMeanwhileError);
    expect(told).toEqual(['abandon']);
    expect(qemu.executed).not.toContain('cont');
  });

  it('one that was paused at first, and was resumed, runs over there', async () => {
    const qemu = new FakeQemu();
    qemu.status = 'paused';
    qemu.onLook = (look) => {
      if (look === 1) qemu.resume();
      else qemu.complete();
    };
    expect(await migrate(qemu)).toEqual({ moved: true, told: ['resume'] });
  });
});
