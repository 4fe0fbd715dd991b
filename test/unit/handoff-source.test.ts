/** The QEMU that has the VM is stopped and continued by the hand-off, and by others meanwhile. */
import { describe, expect, it } from 'vitest';
import { QmpError } from '../../lib/errors.js';
import { HandoffSource } from '../../lib/handoff/source.js';
import type { QmpClient } from '../../lib/qmp/client.js';

/** As much of its monitor as that takes. */
class FakeMonitor {
  readonly open = true;
  readonly executed: string[] = [];
  status = 'running';
  refusesCont = false;

  async execute(command: string): Promise<unknown> {
    this.executed.push(command);
    if (command === 'query-status') return { status: this.status, running: this.status === 'running' };
    if (command === 'query-migrate') return {};
    if (command === 'stop' && this.status === 'running') this.status = 'paused';
    if (command === 'cont') {
      if (this.refusesCont) throw new QmpError('cont: Migration is not finalized yet');
      this.status = 'running';
    }
    return {};
  }

  pipeline(requests: readonly { execute: string }[]): Promise<unknown>[] {
    return requests.map(({ execute }) => this.execute(execute));
  }

  get changes(): string[] {
    return this.executed.filter((command) => !command.startsWith('query-'));
  }
}

const sourceOf = (monitor: FakeMonitor, wasRunning = true) =>
  new HandoffSource(monitor as unknown as QmpClient, wasRunning);

describe('a short stop of its own', () => {
  it('ends with the VM running, and leaves nothing to undo', async () => {
    const monitor = new FakeMonitor();
    const source = sourceOf(monitor);
    let during = '';
    await source.pauseFor(async () => {
      during = monitor.status;
    });
    expect({ during, after: monitor.status }).toEqual({ during: 'paused', after: 'running' });
    monitor.status = 'paused'; // by somebody else
    await source.goOn();
    expect(monitor.changes).toEqual(['stop', 'cont']);
  });

  it.each(['paused', 'io-error'])('leaves a VM as it is that is %s by now', async (status) => {
    const monitor = new FakeMonitor();
    const source = sourceOf(monitor);
    monitor.status = status;
    const paused = source.pauseFor(() => expect.unreachable('it was not stopped by us'));
    await expect(paused).rejects.toThrow(`does not run any more (${status})`);
    await source.goOn();
    expect(monitor.changes).not.toContain('cont');
    expect(await source.status()).toBe(status);
  });

  it('lets a guest sleep on that has gone to sleep', async () => {
    const monitor = new FakeMonitor();
    monitor.status = 'suspended';
    await expect(sourceOf(monitor).stop()).rejects.toThrow(QmpError);
    expect(monitor.changes).toEqual(['stop', 'cont']);
  });

  it('is undone by goOn() where the work in it fails', async () => {
    const monitor = new FakeMonitor();
    const source = sourceOf(monitor);
    await expect(source.pauseFor(() => Promise.reject(new Error('no space')))).rejects.toThrow('no space');
    expect(monitor.status).toBe('paused');
    await source.goOn();
    expect(monitor.status).toBe('running');
  });

  it('says that the VM stands still where it cannot be continued', async () => {
    const monitor = new FakeMonitor();
    const source = sourceOf(monitor);
    await source.stop();
    monitor.refusesCont = true;
    const error = await source.goOn().catch((thrown: unknown) => thrown);
    expect(error).toMatchObject({
      message: expect.stringContaining('stands still (paused): cont: Migration is not finalized yet'),
      cure: '`cont` there resumes it.',
    });
  });

  it('is none for a VM that was paused to begin with', async () => {
    const monitor = new FakeMonitor();
    monitor.status = 'paused';
    const source = sourceOf(monitor, false);
    await source.stop();
    await source.goOn();
    expect(monitor.changes).toEqual([]);
  });
});
