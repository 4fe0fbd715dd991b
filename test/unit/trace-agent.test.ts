/** A guest's processes by its agent: what /proc tells, and a stand-in for the agent that answers as QEMU's does. */
import { mkdtemp, rm } from 'node:fs/promises';
import { createServer, type Server, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import {
  changesBetween,
  parseTaskStats,
  SAMPLE_COMMAND,
  type TaskSample,
} from '../../lib/trace/agent-samples.js';
import { openGuestAgent } from '../../lib/trace/guest-agent-source.js';
import { monotonicNs } from '../../lib/trace/sched-recording.js';

const statLine = (tid: number, name: string, ticks: number, vcpu: number): string => {
  const fields = Array.from({ length: 49 }, () => 0);
  fields[10] = ticks;
  fields[35] = vcpu;
  return `/proc/${tid}/task/${tid}/stat:${tid} (${name}) R ${fields.join(' ')}\n`;
};

describe('what the guest says of its threads', () => {
  it('is read past any name', () => {
    expect(parseTaskStats(statLine(7, 'a) R (b', 12, 1))).toEqual([
      { pid: 7, tid: 7, name: 'a) R (b', ticks: 12, vcpu: 1 },
    ]);
    expect(parseTaskStats('grep: /proc/8/task/8/stat: gone\n')).toEqual([]);
  });

  const task = (tid: number, ticks: number, vcpu: number): TaskSample => ({
    ...{ tid, pid: tid, name: `p${tid}`, ticks, vcpu },
  });

  it('each vCPU goes to who used most of it; who used none is idle', () => {
    const before = [task(1, 100, 0), task(2, 50, 0), task(3, 9, 1)];
    const after = [task(1, 103, 0), task(2, 60, 0), task(3, 9, 1)];
    expect(changesBetween(before, after, 2, 5)).toEqual([
      { atUs: 5, vcpu: 0, tid: 2, pid: 2, name: 'p2' },
      { atUs: 5, vcpu: 1, tid: 0, pid: 0, name: 'idle' },
    ]);
  });

  it('one that began between two looks counts with all of its time', () => {
    expect(changesBetween([], [task(4, 3, 0)], 1, 0)).toMatchObject([{ tid: 4 }]);
  });
});

describe('an agent', () => {
  let dir = '';
  let path = '';
  let server: Server;
  const sockets = new Set<Socket>();
  /** Answers to commands of the guest's shell, and what was asked. */
  let shell: (command: string) => string;
  let refused = false;

  const answer = (line: string): object[] => {
    const { execute, arguments: args } = JSON.parse(line) as {
      execute: string;
      arguments: { id: number; arg: string[]; pid: number };
    };
    if (execute === 'guest-sync') return [{ return: { stale: true } }, { return: args.id }];
    if (refused) return [{ error: { class: 'CommandNotFound', desc: `${execute} has been disabled` } }];
    if (execute === 'guest-exec') {
      outputs.push(shell(args.arg[1]!));
      return [{ return: { pid: outputs.length - 1 } }];
    }
    // The first question comes too early.
    if (!asked.has(args.pid)) {
      asked.add(args.pid);
      return [{ return: { exited: false } }];
    }
    const data = Buffer.from(outputs[args.pid]!).toString('base64');
    return [{ return: { exited: true, exitcode: 1, 'out-data': data } }];
  };
  let outputs: string[] = [];
  const asked = new Set<number>();

  beforeEach(async () => {
    dir = await mkdtemp(join(tmpdir(), 'holdfast-agent-'));
    path = join(dir, 'agent');
    [refused, outputs] = [false, []];
    asked.clear();
    server = createServer((socket) => {
      sockets.add(socket);
      let partial = '';
      socket.on('data', (bytes) => {
        partial += bytes.toString();
        const lines = partial.split('\n');
        partial = lines.pop() ?? '';
        for (const line of lines) {
          // In pieces, as a serial port delivers.
          const text = answer(line)
            .map((one) => `${JSON.stringify(one)}\n`)
            .join('');
          socket.write(text.slice(0, 5));
          setImmediate(() => socket.write(text.slice(5)));
        }
      });
    });
    await new Promise<void>((resolve) => server.listen(path, resolve));
  });
  afterEach(async () => {
    for (const socket of sockets) socket.destroy();
    await new Promise((resolve) => server.close(resolve));
    await rm(dir, { recursive: true });
  });

  it('tells look by look who had each vCPU', async () => {
    let looks = 0;
    shell = (command) => {
      if (command !== SAMPLE_COMMAND) return 'Linux version 6.1.0 (agent)\n';
      looks += 1;
      return statLine(7, 'spin', 20 * looks, 1) + statLine(8, 'sleeps', 3, 0);
    };
    const source = openGuestAgent({ path, vcpus: 2, ratePerS: 100 });
    const originNs = monotonicNs();
    await source.start();
    while (looks < 5) await new Promise((resolve) => setTimeout(resolve, 5));
    await source.stop();
    const durationUs = (monotonicNs() - originNs) / 1e3;
    const record = source.record(originNs, durationUs);
    expect(record).toMatchObject({ source: 'guest agent', kernel: 'Linux version 6.1.0 (agent)', unread: 0 });
    expect(record.looks).toBeGreaterThanOrEqual(5);
    // One slice each: what does not change is not told again.
    expect(record.slices.map(({ vcpu, name }) => [vcpu, name]).sort()).toEqual([
      [0, 'idle'],
      [1, 'spin'],
    ]);
    for (const { fromUs, toUs } of record.slices) {
      expect(fromUs).toBeGreaterThan(0);
      expect(toUs).toBe(durationUs);
    }
  });

  it('that forbids guest-exec is an error with its cure', async () => {
    refused = true;
    await expect(openGuestAgent({ path, vcpus: 1, ratePerS: 5 }).start()).rejects.toMatchObject({
      code: 'HOLDFAST_E_QMP',
      message: expect.stringContaining('guest-exec has been disabled'),
      cure: expect.stringContaining('--guest-symbols needs no agent'),
    });
  });

  it('that goes away while it is asked ends its part, not the trace', async () => {
    shell = (command) => {
      if (command !== SAMPLE_COMMAND) return 'Linux\n';
      if (outputs.length > 2) for (const socket of sockets) socket.destroy();
      return statLine(7, 'spin', outputs.length, 0);
    };
    const source = openGuestAgent({ path, vcpus: 1, ratePerS: 100 });
    await source.start();
    await new Promise((resolve) => setTimeout(resolve, 100));
    await source.stop();
    expect(source.record(monotonicNs(), 1).unread).toBe(1);
  });

  it('that is not there is told with QEMU’s side of it', async () => {
    await expect(
      openGuestAgent({ path: join(dir, 'none'), vcpus: 1, ratePerS: 5 }).start(),
    ).rejects.toMatchObject({
      code: 'HOLDFAST_E_QMP_CONNECTION',
      cure: expect.stringContaining('org.qemu.guest_agent.0'),
    });
  });
});
