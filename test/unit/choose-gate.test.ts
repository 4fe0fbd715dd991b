/** Which gate a VM gets, and that what an earlier run left holding is never put behind another one. */
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { ConfigError } from '../../lib/errors.js';
import { NOTHING_LOGGED } from '../../lib/log.js';
import { chooseGate } from '../../lib/output/choose-gate.js';
import { relaysOf, type VmRelay } from '../../lib/output/relay-files.js';
import type { PrimarySettings } from '../../lib/primary/options.js';
import type { QmpClient } from '../../lib/qmp/client.js';
import { identifyProcess, type ProcessIdentity } from '../../lib/vm/process.js';

let vmProcess: ProcessIdentity;
let dir: string;
beforeAll(async () => {
  vmProcess = await identifyProcess(process.pid);
  dir = await mkdtemp(join(tmpdir(), 'holdfast-gate-'));
});
afterAll(async () => {
  await rm(dir, { recursive: true });
});

const native = {
  Plug: class {
    constructor() {
      throw new Error('this VM has no tap');
    }
  } as never,
  probePlug: () => Promise.reject(new Error('not asked for')),
};

/** A monitor that knows only which objects there are. */
const qmpWith = (...objects: string[]): QmpClient =>
  ({
    execute: async () => objects.map((name) => ({ name, type: 'child<filter-buffer>' })),
    pipeline: (requests: readonly unknown[]) => requests.map(async () => ({})),
  }) as unknown as QmpClient;

const choose = async (
  setting: PrimarySettings['gate'],
  options: { readonly netdevs?: readonly string[]; readonly objects?: readonly string[] } = {},
): Promise<{ kind: string; installed: boolean }> => {
  const netdevs = (options.netdevs ?? ['net0']).map((id) => ({
    id,
    type: 'stream',
    queues: 1,
    vhost: false,
  }));
  const gate = await chooseGate({
    setting,
    vm: { netdevs, process: vmProcess },
    relays: [] satisfies VmRelay[],
    qmp: qmpWith(...(options.objects ?? [])),
    native,
    log: NOTHING_LOGGED,
  });
  await gate.close();
  return { kind: gate.kind, installed: gate.installed };
};

const FILTERS = ['holdfast-f1-net0', 'holdfast-f2-net0'];

describe('the gate', () => {
  it('is filter-buffer by default where no relay serves the VM', async () => {
    expect(await choose('auto')).toEqual({ kind: 'filter-buffer', installed: false });
    expect(await choose('auto', { netdevs: [] })).toEqual({ kind: 'filter-buffer', installed: false });
    expect(await choose('none')).toEqual({ kind: 'none', installed: false });
  });

  it('is adopted with what an earlier run left', async () => {
    expect(await choose('auto', { objects: FILTERS })).toEqual({ kind: 'filter-buffer', installed: true });
  });

  it('never stands behind another one that still holds', async () => {
    await expect(choose('none', { objects: FILTERS })).rejects.toThrow(ConfigError);
    await expect(choose('relay', { objects: FILTERS })).rejects.toThrow(/filter-buffer, still holds/);
  });

  it('is no relay where there is none', async () => {
    await expect(choose('relay', { netdevs: ['net0', 'net1'] })).rejects.toThrow(
      /no relay serves netdev net0, net1/,
    );
  });
});

describe('the relays of a VM', () => {
  const socket = (): string => join(dir, 'net0.sock');
  const argv = (): string[] => [
    '-netdev',
    `stream,id=net0,server=on,addr.type=unix,addr.path=${socket()}`,
    ...['-netdev', 'stream,id=other,server=on,addr.type=unix,addr.path=other.sock'],
  ];
  const record = (vm: ProcessIdentity | null): object => ({
    ...{ socket: socket(), control: `${socket()}.ctl`, target: { tap: 'tap0' }, heldBytesMax: 1 << 20, vm },
    process: { pid: 1, startTicks: '0' },
  });

  it('are found by their records, also those that have ended', async () => {
    const vm = { argv: argv(), cwd: dir, process: vmProcess };
    expect(await relaysOf(vm)).toEqual([]);
    await writeFile(`${socket()}.relay`, JSON.stringify(record(null)));
    expect(await relaysOf(vm)).toEqual([
      {
        ...{ netdev: 'net0', socket: socket(), control: `${socket()}.ctl`, target: { tap: 'tap0' } },
        ...{ heldBytesMax: 1 << 20, vm: vmProcess },
      },
    ]);
  });

  it('are not those of an earlier VM with the same paths', async () => {
    const vm = { argv: argv(), cwd: dir, process: vmProcess };
    await writeFile(`${socket()}.relay`, JSON.stringify(record({ pid: vmProcess.pid, startTicks: '1' })));
    expect(await relaysOf(vm)).toEqual([]);
    await writeFile(`${socket()}.relay`, '{"of": "another version"}');
    expect(await relaysOf(vm)).toEqual([]);
  });
});
