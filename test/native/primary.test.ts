/** The primary's data plane against a real QEMU: tracking, injection, capture, base and epochs. */

import { execFileSync } from 'node:child_process';
import { randomBytes, randomFillSync } from 'node:crypto';
import { once } from 'node:events';
import { closeSync, openSync, rmSync, statSync, truncateSync, writeFileSync } from 'node:fs';
import { type AddressInfo, createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import { type NativeCaptureMode, native, type SenderStrategy } from '../../lib/native.js';
import { Pair, type PairOptions } from './primary-pair.js';
import { pageBytes, SmallQemu } from './primary-qemu.js';

const engineFor = (qemu: SmallQemu) =>
  new native.PrimaryEngine({
    pid: qemu.pid,
    ram: qemu.ram,
    stagingBytesMax: 16 * 2 ** 20,
    strategy: 'copy',
    copyThreads: 2,
  });

const fileHandle = (socket: unknown): number => (socket as { _handle: { fd: number } })._handle.fd;

let qemu: SmallQemu;
const pairs: Pair[] = [];

const openPair = (options?: PairOptions): Pair => {
  const pair = new Pair(qemu, options);
  pairs.push(pair);
  return pair;
};

beforeAll(async () => {
  qemu = await SmallQemu.start();
});

afterEach(async () => {
  for (const pair of pairs.splice(0)) await pair.close();
  expect(native.debugCounters()).toEqual({ threads: 0, engines: 0, descriptors: 0 });
});

afterAll(async () => {
  await qemu.kill();
});

test('01 the kernel has what is needed', async () => {
  const probe = await native.probeKernel();
  expect(probe).toMatchObject({
    userfaultfd: { ok: true, errno: 0 },
    wpAsync: true,
    pagemapScan: true,
    ptrace: true,
    pidfdGetfd: true,
  });
  expect(probe.release).toMatch(/^\d+\.\d+/);
  expect(probe.capEff).toMatch(/^[0-9a-f]+$/);
});

describe('02 guest RAM', () => {
  test('is found with its file and page size', () => {
    expect(qemu.ram).toMatchObject({
      sizeBytes: 64 * 2 ** 20,
      fileOffset: 0,
      path: qemu.ramPath,
      deleted: false,
      shared: true,
      pageSize: pageBytes,
    });
  });

  test('is found although its file was unlinked, and can be tracked', async () => {
    const other = await SmallQemu.start(32);
    try {
      rmSync(other.ramPath);
      const [ram] = await native.findRamMappings(other.pid, 2 ** 20);
      expect(ram).toMatchObject({ deleted: true, sizeBytes: 32 * 2 ** 20 });
      const engine = engineFor(other);
      await engine.attach();
      await engine.detach();
      await engine.close();
    } finally {
      await other.kill();
    }
  });

  test('of a process that is not there is an error with a code', async () => {
    await expect(native.findRamMappings(2 ** 22 + 1, 0)).rejects.toMatchObject({
      code: 'HOLDFAST_E_RAM_MAPPING',
      syscall: 'open',
    });
  });

  test('that is not where it was described is refused, and nothing was injected', async () => {
    const engine = new native.PrimaryEngine({
      pid: qemu.pid,
      ram: { ...qemu.ram, fileOffset: pageBytes },
      stagingBytesMax: 2 ** 20,
      strategy: 'copy',
      copyThreads: 1,
    });
    await expect(engine.attach()).rejects.toMatchObject({ code: 'HOLDFAST_E_RAM_MAPPING' });
    expect(qemu.userfaults()).toBe(0);
    await engine.close();
  });
});

describe('03 injection', () => {
  test('attach and detach, many times, leave QEMU as it was', async () => {
    const engine = engineFor(qemu);
    for (let i = 0; i < 25; i++) {
      expect(await engine.attach()).toMatchObject({ adopted: false });
      expect(qemu.userfaults()).toBe(1);
      await engine.detach();
      expect(qemu.userfaults()).toBe(0);
      expect(await qemu.qmp('query-status')).toMatchObject({ running: true });
    }
    await engine.detach();
    await engine.close();
  });

  test('works while QEMU is busy with commands', async () => {
    const engine = engineFor(qemu);
    let busy = true;
    const load = (async () => {
      while (busy) await qemu.qmp('query-status');
    })();
    for (let i = 0; i < 10; i++) {
      await engine.attach();
      await engine.detach();
    }
    busy = false;
    await load;
    expect(qemu.userfaults()).toBe(0);
    await engine.close();
  });

  test('a descriptor left by a closed engine is adopted', async () => {
    const first = engineFor(qemu);
    await first.attach();
    await first.close();
    expect(qemu.userfaults()).toBe(1);
    const second = engineFor(qemu);
    expect(await second.attach()).toEqual({ adopted: true, injectMs: 0 });
    expect(qemu.userfaults()).toBe(1);
    await second.detach();
    expect(qemu.userfaults()).toBe(0);
    await second.close();
  });

  test('QEMU dead: capture says so, detach and close succeed', async () => {
    const other = await SmallQemu.start(32);
    const engine = engineFor(other);
    try {
      await engine.attach();
    } finally {
      await other.kill();
    }
    await expect(engine.capture({ epoch: 1, mode: 'staged' })).rejects.toMatchObject({ errno: 3 });
    await engine.detach();
    await engine.close();
    const late = engineFor(other);
    await expect(late.attach()).rejects.toMatchObject({ errno: expect.any(Number) });
    await late.close();
  });
});

describe('04 base and epochs, engine and receiver in one process', () => {
  const modes: readonly NativeCaptureMode[] = ['staged', 'direct'];
  const strategies: readonly SenderStrategy[] = [
    ...(['copy', 'sendfile', 'splice', 'vmsplice', 'zerocopy', 'uring'] as const),
  ];
  const cases = modes.flatMap((mode) =>
    strategies.flatMap((strategy) => [1, 3].map((streams) => ({ mode, strategy, streams }))),
  );

  test.each(cases)(
    '$mode by $strategy, streams $streams: 50 epochs, exact and identical',
    async ({ mode, strategy, streams }) => {
      const pair = openPair({ strategy, streams });
      await pair.engine.attach();
      await qemu.qmp('stop');
      await pair.connect();
      expect(await pair.differences()).toEqual([]);
      for (let epoch = 1; epoch <= 50; epoch++) {
        // Scattered pages, a run, and on some epochs nothing.
        const pages = new Set<number>();
        for (let i = 0; i < (epoch % 10) * 20; i++) pages.add((i * 37 + epoch * 101) % 8192);
        for (let i = 0; i < (epoch % 3) * 50; i++) pages.add(9000 + epoch + i);
        qemu.writePages(pages, epoch);
        const result = await pair.epoch(epoch, mode);
        expect(result).toMatchObject({ mode, dirtyPages: pages.size, deviceBytes: 12 });
        expect(result.pages + result.zeroPages).toBe(pages.size);
        expect(result.copiedBytes + result.referenceBytes).toBe(result.pages * pageBytes);
        if (epoch % 10 === 0) {
          await pair.applied(epoch);
          expect(await pair.differences()).toEqual([]);
        }
      }
      await qemu.qmp('cont');
      const commits = pair.events.filter((event) => event.type === 'committed');
      expect(commits.map((event) => event.epoch)).toEqual(Array.from({ length: 50 }, (_, i) => i + 1));
    },
  );

  test('the sender may change with every epoch, and the numbers of both sides agree', async () => {
    const pair = openPair({ streams: 2 });
    await qemu.qmp('stop');
    await pair.engine.attach();
    await pair.connect();
    for (let epoch = 1; epoch <= 12; epoch++) {
      qemu.writePages(Array(600).keys(), epoch);
      const sent = await pair.epoch(epoch, 'staged', strategies[epoch % strategies.length]);
      await pair.applied(epoch);
      expect(await pair.differences()).toEqual([]);
      const committed = pair.events.find((event) => event.type === 'committed' && event.epoch === epoch);
      expect(committed).toMatchObject({ pages: sent.pages, zeroPages: sent.zeroPages, bytes: sent.bytes });
      if (committed?.type !== 'committed') return;
      expect(committed.receiveSyscalls).toBeGreaterThan(0);
      expect(committed.receiveCpuMs).toBeGreaterThan(0);
      expect(committed.digestMs).toBeGreaterThan(0);
    }
    await qemu.qmp('cont');
  });

  test('without verification neither side computes a digest', async () => {
    const pair = openPair({ streams: 2, verify: false });
    await qemu.qmp('stop');
    await pair.engine.attach();
    await pair.connect();
    qemu.writePages(Array(600).keys(), 1);
    await pair.epoch(1, 'direct');
    await pair.applied(1);
    expect(await pair.differences()).toEqual([]);
    expect(pair.events.find((event) => event.type === 'committed')).toMatchObject({ digestMs: 0 });
    await qemu.qmp('cont');
  });

  test('streams beyond the limit are refused', async () => {
    const engine = engineFor(qemu);
    const options = { host: '127.0.0.1', port: 1, token: new Uint8Array(32), timeoutMs: 10 };
    for (const streams of [0, 17]) {
      expect(() => engine.connect({ ...options, streams })).toThrow(/streams/);
    }
    await engine.close();
  });

  test('a live base converges on a running guest, and holes stay holes', async () => {
    const pair = openPair();
    await pair.engine.attach();
    await pair.connect();
    await qemu.qmp('stop');
    const blocks = statSync(qemu.ramPath).blocks;
    await pair.epoch(1, 'staged');
    await pair.applied(1);
    expect(await pair.differences()).toEqual([]);
    expect(statSync(qemu.ramPath).blocks).toBe(blocks);
    expect(blocks * 512).toBeLessThan(qemu.ram.sizeBytes);
    await qemu.qmp('cont');
  });

  test('an aborted epoch is carried into the next one', async () => {
    const pair = openPair();
    await qemu.qmp('stop');
    await pair.engine.attach();
    await pair.connect();
    qemu.writePages([10, 11, 12, 500], 1);
    expect(await pair.engine.capture({ epoch: 1, mode: 'staged' })).toMatchObject({ dirtyPages: 4, runs: 2 });
    await expect(pair.engine.capture({ epoch: 2, mode: 'staged' })).rejects.toMatchObject({
      code: 'HOLDFAST_E_LIMIT',
    });
    await pair.engine.abort(1);
    qemu.writePages([12, 13, 700], 2);
    expect(await pair.epoch(2, 'staged')).toMatchObject({ dirtyPages: 6, runs: 3 });
    await pair.applied(2);
    expect(await pair.differences()).toEqual([]);
    await qemu.qmp('cont');
  });

  test('what follows a VM is all that RAM holds, found ahead or not, and however often it is handed over', async () => {
    const pair = openPair();
    await qemu.qmp('stop');
    await pair.engine.attach();
    await pair.dial();
    await pair.engine.findPopulated();
    qemu.writePages([10, 15_000], 1);
    const held = (): number => (statSync(qemu.ramPath).blocks * 512) / pageBytes;
    expect(await pair.engine.capture({ epoch: 1, mode: 'later' })).toMatchObject({
      dirtyPages: 0,
      laterPages: held(),
    });
    await pair.send(1);
    // It was not told to run: of another one that is asked nothing is there.
    await pair.engine.disconnect();
    await pair.receiver.closeSession();
    rmSync(pair.replicaPath, { force: true });
    await pair.dial();
    qemu.writePages([15_001], 1);
    expect(await pair.engine.capture({ epoch: 2, mode: 'later' })).toMatchObject({ laterPages: held() });
    await pair.send(2);
    await qemu.qmp('cont');
  });

  test.each(strategies.flatMap((strategy) => [false, true].map((send) => ({ strategy, send }))))(
    'prestaged by $strategy, sent ahead: $send: what is written again is superseded, then held back',
    async ({ strategy, send }) => {
      const pair = openPair({ strategy, streams: 2 });
      await qemu.qmp('stop');
      await pair.engine.attach();
      await pair.connect();
      for (let epoch = 1; epoch <= 20; epoch++) {
        qemu.writePages([10, 11, 12, 13, 500, 700 + epoch], epoch);
        // Pages 12 and 13 are written again in every epoch: after two of them that is known.
        const hot = epoch > 2 ? 2 : 0;
        const slice = await pair.engine.prestage({ epoch, send });
        expect(slice).toMatchObject({ pages: 6 - hot, heldBackPages: hot, supersededPages: 0 });
        expect(slice.bytes > 0).toBe(send);
        qemu.writePages([9, 12, 13, 14, 2000], 100 + epoch);
        const done = await pair.epoch(epoch, 'staged');
        expect(done).toMatchObject({
          mode: 'staged',
          dirtyPages: 9,
          prestagedPages: 6 - hot,
          supersededPages: 2 - hot,
          aheadPages: send ? 4 : 0,
          heldBackPages: hot,
          supersededBytes: send ? (2 - hot) * pageBytes : 0,
        });
        expect(done.pages + done.zeroPages).toBe(send ? 9 + 2 - hot : 9);
        expect(done.copiedBytes + done.referenceBytes).toBe(done.pages * pageBytes);
        expect(done.bytes).toBeGreaterThan(slice.bytes);
        await pair.applied(epoch);
        expect(await pair.differences()).toEqual([]);
      }
      await qemu.qmp('cont');
    },
  );

  test.each([false, true])(
    'slices, sent ahead: %s, are not forgotten: by more of them, an abort, a direct capture, a new session',
    async (send) => {
      const pair = openPair({ streams: 3 });
      await qemu.qmp('stop');
      await pair.engine.attach();
      await pair.connect();
      qemu.writePages([1, 2], 1);
      await pair.engine.prestage({ epoch: 1, send });
      qemu.writePages([2, 3], 1);
      expect(await pair.engine.prestage({ epoch: 1, send })).toMatchObject({
        pages: 2,
        supersededPages: 1,
        supersededSentPages: send ? 1 : 0,
      });
      expect(await pair.engine.capture({ epoch: 1, mode: 'staged' })).toMatchObject({
        dirtyPages: 3,
        prestagedPages: 4,
        supersededPages: 1,
      });
      await expect(pair.engine.prestage({ epoch: 2, send })).rejects.toMatchObject({
        code: 'HOLDFAST_E_LIMIT',
      });
      await pair.engine.abort(1);
      // The same number again, on the same connection; then given up before it was captured.
      expect(await pair.engine.prestage({ epoch: 1, send })).toMatchObject({ pages: 3 });
      await pair.engine.abort(1);
      // Another number gives up the slices of the one before.
      expect(await pair.engine.prestage({ epoch: 1, send })).toMatchObject({ pages: 3 });
      expect(await pair.engine.prestage({ epoch: 2, send })).toMatchObject({ pages: 3, supersededPages: 0 });
      qemu.writePages([3], 9);
      expect(await pair.epoch(2, 'direct')).toMatchObject({
        mode: 'direct',
        dirtyPages: 3,
        prestagedPages: send ? 3 : 0,
        supersededPages: send ? 1 : 0,
        aheadPages: send ? 2 : 0,
      });
      await pair.applied(2);
      expect(await pair.differences()).toEqual([]);
      qemu.writePages([4], 3);
      await pair.engine.prestage({ epoch: 3, send });
      await pair.engine.disconnect();
      await pair.receiver.closeSession();
      await pair.connect();
      expect(await pair.epoch(3, 'staged')).toMatchObject({ dirtyPages: 0 });
      await pair.applied(3);
      expect(await pair.differences()).toEqual([]);
      await qemu.qmp('cont');
    },
  );

  test('half of the staging pool is left to the pause, and a slice is as small as it is told', async () => {
    const pair = openPair({ stagingBytesMax: 16 * pageBytes });
    await qemu.qmp('stop');
    await pair.engine.attach();
    await pair.connect();
    qemu.writePages(Array(9).keys(), 1);
    expect(await pair.engine.prestage({ epoch: 1, send: false, bytesMax: 3 * pageBytes })).toMatchObject({
      pages: 3,
    });
    expect(await pair.engine.prestage({ epoch: 1, send: false })).toMatchObject({ pages: 5 });
    expect(await pair.epoch(1, 'staged')).toMatchObject({
      mode: 'staged',
      dirtyPages: 9,
      prestagedPages: 8,
      supersededPages: 0,
    });
    // 8 places of a pool of 16 and 12 pages on top: what was only staged gives its places up.
    qemu.writePages(Array(8).keys(), 2);
    expect(await pair.engine.prestage({ epoch: 2, send: false })).toMatchObject({ pages: 8 });
    qemu.writePages(Array(12).keys(), 3);
    expect(await pair.epoch(2, 'staged')).toMatchObject({ mode: 'staged', dirtyPages: 12 });
    await pair.applied(2);
    expect(await pair.differences()).toEqual([]);
    // What was sent keeps them, until the acknowledgement.
    qemu.writePages([100, 101, 102, 103, 104, 105, 106, 107], 4);
    expect(await pair.engine.prestage({ epoch: 3, send: true })).toMatchObject({ pages: 8 });
    qemu.writePages([100, 101, 102, 103, 104, 105, 106, 107, 108], 5);
    expect(await pair.epoch(3, 'staged')).toMatchObject({ mode: 'direct', dirtyPages: 9, aheadPages: 0 });
    await pair.applied(3);
    expect(await pair.differences()).toEqual([]);
    await qemu.qmp('cont');
  });

  test('slices without end: those beyond the limit of an epoch are staged, and leave with the pause', async () => {
    const pair = openPair();
    await qemu.qmp('stop');
    await pair.engine.attach();
    await pair.connect();
    let sent = 0;
    for (let slice = 0; slice < 80; slice++) {
      qemu.writePages([slice, 1000 + slice], slice);
      if ((await pair.engine.prestage({ epoch: 1, send: true })).bytes > 0) sent++;
    }
    expect(sent).toBe(63);
    expect(await pair.epoch(1, 'staged')).toMatchObject({ dirtyPages: 160, aheadPages: 126 });
    await pair.applied(1);
    expect(await pair.differences()).toEqual([]);
    await qemu.qmp('cont');
  });

  test('the device state travels as changes to the one before, after the first on a connection', async () => {
    const pair = openPair({ streams: 2 });
    await qemu.qmp('stop');
    await pair.engine.attach();
    await pair.connect();
    const state = randomBytes(50_000);
    const sendState = async (epoch: number) => {
      writeFileSync(pair.devicePath, state);
      return await pair.epoch(epoch, 'staged');
    };
    const bytes = state.length - 8; // the pair skips 8
    expect(await sendState(1)).toMatchObject({ deviceBytes: bytes, deviceSentBytes: bytes });
    state.write('changed', 30_000);
    expect((await sendState(2)).deviceSentBytes).toBeLessThan(50);
    randomFillSync(state);
    expect(await sendState(3)).toMatchObject({ deviceSentBytes: bytes });
    // What was captured and given up is no state to refer to.
    writeFileSync(pair.devicePath, randomBytes(50_000));
    await pair.engine.capture({ epoch: 4, mode: 'staged' });
    await pair.engine.abort(4);
    state.write('again', 100);
    expect((await sendState(4)).deviceSentBytes).toBeLessThan(50);
    await pair.applied(4);
    expect(await pair.receiver.fence()).toMatchObject({ epoch: 4 });
    expect(Buffer.compare(await pair.writtenState(), state.subarray(8))).toBe(0);
    await qemu.qmp('cont');
  });

  test('a dirty set larger than staging turns the capture direct', async () => {
    const pair = openPair({ stagingBytesMax: 16 * pageBytes });
    await qemu.qmp('stop');
    await pair.engine.attach();
    await pair.connect();
    qemu.writePages(Array(16).keys(), 1);
    expect(await pair.epoch(1, 'staged')).toMatchObject({ mode: 'staged', dirtyPages: 16 });
    qemu.writePages(Array(17).keys(), 2);
    expect(await pair.epoch(2, 'staged')).toMatchObject({ mode: 'direct', dirtyPages: 17 });
    await pair.applied(2);
    expect(await pair.differences()).toEqual([]);
    await qemu.qmp('cont');
  });

  test('a state file that is missing fails the send, keeps the connection, forgets no page', async () => {
    const pair = openPair();
    await qemu.qmp('stop');
    await pair.engine.attach();
    await pair.connect();
    qemu.writePages([3, 4], 1);
    await pair.engine.capture({ epoch: 1, mode: 'staged' });
    const device = { path: `${pair.devicePath}-missing`, skipBytes: 0 };
    await expect(pair.engine.send({ epoch: 1, device })).rejects.toMatchObject({
      code: 'HOLDFAST_E_SYSCALL',
      syscall: 'open',
    });
    expect(await pair.epoch(2, 'staged')).toMatchObject({ dirtyPages: 2 });
    await pair.applied(2);
    expect(await pair.differences()).toEqual([]);
    await qemu.qmp('cont');
  });

  test('disconnect cancels what runs and what waits', async () => {
    const silent = createServer(() => {}).listen(0, '127.0.0.1');
    await once(silent, 'listening');
    const engine = engineFor(qemu);
    await engine.attach();
    const { port } = silent.address() as AddressInfo;
    const calls = [
      engine.connect({ host: '127.0.0.1', port, token: new Uint8Array(32), timeoutMs: 60_000 }),
      engine.baseRound({ first: true }),
    ];
    const rejected = Promise.all(
      calls.map((call) => expect(call).rejects.toMatchObject({ code: 'HOLDFAST_E_CANCELLED' })),
    );
    await engine.disconnect();
    await rejected;
    await engine.detach();
    await engine.close();
    silent.close();
  });

  test('after a cut, whenever it comes, a new session starts from the base', async () => {
    const pair = openPair();
    await qemu.qmp('stop');
    await pair.engine.attach();
    await pair.connect();
    qemu.writePages([20, 21], 1);
    await pair.engine.capture({ epoch: 1, mode: 'staged' });
    const sent = pair.send(1).then(
      () => 'acknowledged',
      (error: { code: string }) => error.code,
    );
    await pair.engine.disconnect();
    expect(['acknowledged', 'HOLDFAST_E_CANCELLED']).toContain(await sent);
    await expect(pair.engine.baseRound({ first: true })).rejects.toMatchObject({
      code: 'HOLDFAST_E_PEER_LOST',
    });
    await pair.receiver.closeSession();
    await pair.connect();
    qemu.writePages([22], 2);
    await pair.epoch(2, 'staged');
    await pair.applied(2);
    expect(await pair.differences()).toEqual([]);
    await qemu.qmp('cont');
  });

  test('a backup that vanishes is a lost peer; no page is forgotten', async () => {
    const pair = openPair({ strategy: 'sendfile' });
    await qemu.qmp('stop');
    await pair.engine.attach();
    await pair.connect();
    await pair.receiver.closeSession();
    qemu.writePages([30, 31], 1);
    await pair.engine.capture({ epoch: 1, mode: 'staged' });
    await expect(pair.send(1)).rejects.toMatchObject({ code: 'HOLDFAST_E_PEER_LOST' });
    await pair.engine.abort(1);
    expect(await pair.engine.capture({ epoch: 2, mode: 'staged' })).toMatchObject({ dirtyPages: 2 });
    await qemu.qmp('cont');
  });

  test('close() rejects what waits', async () => {
    const engine = engineFor(qemu);
    await engine.attach();
    await engine.detach();
    const attached = engine.attach().then(
      () => 'attached',
      (error: { code: string }) => error.code,
    );
    const captured = engine.capture({ epoch: 1, mode: 'staged' }).catch((error) => error.code);
    await Promise.all([engine.close(), engine.close()]);
    expect(['attached', 'HOLDFAST_E_CANCELLED']).toContain(await attached);
    await captured;
    await expect(engine.attach()).rejects.toMatchObject({ code: 'HOLDFAST_E_CANCELLED' });
    const last = engineFor(qemu);
    await last.attach();
    await last.detach();
    await last.close();
    expect(qemu.userfaults()).toBe(0);
  });
});

describe('05 helpers', () => {
  test('peerPid and sendWithFd speak to QEMU', async () => {
    const socket = fileHandle(qemu.qmpSocket);
    expect(native.peerPid(socket)).toBe(qemu.pid);
    const fd = openSync('/dev/null', 'r');
    const command = Buffer.from('{"execute":"getfd","arguments":{"fdname":"null"}}\n');
    const reply = qemu.reply();
    native.sendWithFd(socket, command, fd);
    await reply;
    await qemu.qmp('closefd', { fdname: 'null' });
    expect(() => native.sendWithFd(socket, command, 99_999)).toThrow(
      expect.objectContaining({ code: 'HOLDFAST_E_SYSCALL', syscall: 'sendmsg' }),
    );
    closeSync(fd);
  });

  test('hashFile and compareFiles see holes as zeros', async () => {
    const base = join(tmpdir(), `holdfast-files-${process.pid}`);
    const [sparse, full] = [`${base}-sparse`, `${base}-full`];
    try {
      const bytes = 3 * 2 ** 20 + 5000;
      writeFileSync(sparse, '');
      truncateSync(sparse, bytes);
      writeFileSync(full, Buffer.alloc(bytes));
      expect(await native.hashFile(sparse, bytes)).toBe(await native.hashFile(full, bytes));
      const expected = execFileSync('cmp', ['--silent', sparse, full]);
      expect(expected.length).toBe(0);
      expect(await native.compareFiles(sparse, full, bytes, pageBytes, 10)).toEqual([]);
      const changed = Buffer.alloc(bytes);
      for (const page of [0, 300, 768, 769]) changed[page * pageBytes + 7] = 1;
      writeFileSync(full, changed);
      expect(await native.compareFiles(sparse, full, bytes, pageBytes, 10)).toEqual([0, 300, 768, 769]);
      expect(await native.compareFiles(full, sparse, bytes, pageBytes, 2)).toEqual([0, 300]);
      expect(await native.hashFile(sparse, bytes)).not.toBe(await native.hashFile(full, bytes));
      await expect(native.hashFile(sparse, bytes + 1)).rejects.toMatchObject({ code: 'HOLDFAST_E_SYSCALL' });
    } finally {
      for (const file of [sparse, full]) rmSync(file, { force: true });
    }
  });

  test('wrong arguments throw a TypeError that names them', () => {
    expect(() => new native.PrimaryEngine({} as never)).toThrow(/pid|stagingBytesMax/);
    expect(() => native.peerPid('x' as never)).toThrow(/socketFd/);
    expect(() => new native.Receiver({ host: '127.0.0.1', port: 0 } as never)).toThrow(/onEvent/);
  });
});
