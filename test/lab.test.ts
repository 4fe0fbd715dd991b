import { existsSync, readdirSync } from 'node:fs';
import { open } from 'node:fs/promises';
import { connect } from 'node:net';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { afterEach, describe, expect, test } from 'vitest';
import { guestArgs, guestReadyText, repositoryRoot } from './lab/guest.js';
import { checkMemwriter, guestBootId, guestCommand, rebootGuest, startMemwriter } from './lab/guest-shell.js';
import { Lab } from './lab/lab.js';
import { replicationLinks } from './lab/network.js';
import { LabProcess } from './lab/process.js';
import { RedisLoad } from './lab/redis-load-process.js';
import { countInFile, readText, waitFor, waitForText } from './lab/wait.js';

/** Spoils one page that memwriter stamped, found in the guest's RAM by its looks. */
const damagePage = async (ramPath: string): Promise<void> => {
  const [pageBytes, chunkBytes, wordsStamped] = [4096, 16 << 20, 6];
  const file = await open(ramPath, 'r+');
  try {
    const { size } = await file.stat();
    const chunk = Buffer.alloc(chunkBytes);
    for (let at = 0; at < size; at += chunkBytes) {
      await file.read(chunk, 0, chunkBytes, at);
      for (let page = 0; page < chunkBytes; page += pageBytes) {
        const sequence = chunk.readBigUInt64LE(page);
        if (sequence === 0n || sequence > 100_000n) continue;
        if (chunk.readBigUInt64LE(page + pageBytes - 8) !== sequence) continue;
        const inner = new BigUint64Array(chunk.buffer, chunk.byteOffset + page + 8, pageBytes / 8 - 2);
        const stamps = inner.filter((word) => word !== 0n);
        if (stamps.length !== wordsStamped || stamps.some((stamp) => stamp !== stamps[0])) continue;
        await file.write(Buffer.from([0xff]), 0, 1, at + page + 7);
        return;
      }
    }
    throw new Error('no page of memwriter found in guest RAM');
  } finally {
    await file.close();
  }
};

/** What of a lab is on the machine: namespaces, directories, and processes inside the namespaces. */
const remains = (lab: string): string[] =>
  ['/run/netns', '/tmp', '/dev/shm'].flatMap((dir) =>
    (existsSync(dir) ? readdirSync(dir) : [])
      .filter((entry) => entry === lab || entry.startsWith(`${lab}-`))
      .map((entry) => join(dir, entry)),
  );

/** A zombie is dead: an orphan's remains wait for process 1, which is not ours. */
const alive = (pid: number): boolean => /^State:\s+[^ZX]/m.test(readText(`/proc/${pid}/status`));

let lab: Lab | undefined;
afterEach(async () => {
  await lab?.close();
  lab = undefined;
});

describe('network', () => {
  test('hosts, client and replication links reach each other, and a cut link does not', async () => {
    lab = await Lab.create({ tag: 'net', third: true });
    const ping = async (from: 'a' | 'b' | 'c' | 'd', address: string): Promise<boolean> =>
      (await lab!.host(from).exec('busybox', ['ping', '-c1', '-W1', address], { check: false })).code === 0;
    const { aToB, bToD } = replicationLinks;
    expect(await ping('c', lab.host('a').lanAddress)).toBe(true);
    expect(await ping('a', lab.host('b').lanAddress)).toBe(true);
    expect(await ping('d', lab.client.lanAddress)).toBe(true);
    expect(await ping('a', aToB.to.address)).toBe(true);
    expect(await ping('d', bToD.from.address)).toBe(true);
    await lab.host('a').setLink('repl0', 'down');
    expect(await ping('b', aToB.from.address)).toBe(false);
    expect(await ping('b', lab.host('a').lanAddress)).toBe(true);
    await lab.host('a').setLink('repl0', 'up');
    expect(await ping('b', aToB.from.address)).toBe(true);
  });

  test('a failure to create explains itself and leaves nothing', async () => {
    await expect(Lab.create({ tag: 'not allowed' })).rejects.toThrow(/tag/);
    const path = process.env.PATH;
    process.env.PATH = '';
    try {
      await expect(Lab.create({ tag: 'noip' })).rejects.toThrow(/could not be made.*cannot run ip/);
    } finally {
      process.env.PATH = path;
    }
    expect(readdirSync('/tmp').filter((entry) => entry.startsWith(`hf${process.pid}-noip`))).toEqual([]);
  });
});

describe('cleaning up', () => {
  /** A program with a lab, which contains a process whose parent is gone; it then waits for its end. */
  const program = `
    const { Lab } = await import(${JSON.stringify(join(repositoryRoot(), 'dist/test/lab/lab.js'))});
    const lab = await Lab.create({ tag: 'child' });
    const { stdout } = await lab.host('a').exec('sh', ['-c', 'sleep 1000 > /dev/null 2>&1 & echo $!']);
    console.log(JSON.stringify({ name: lab.name, pid: Number(stdout) }));
    process.stdin.once('data', () => process.exit(0));
  `;
  const start = async (): Promise<{ owner: LabProcess; name: string; pid: number }> => {
    const owner = await LabProcess.start(process.execPath, ['--input-type=module', '--eval', program]);
    const lines = createInterface({ input: owner.child.stdout });
    for await (const line of lines) return { owner, ...(JSON.parse(line) as { name: string; pid: number }) };
    throw new Error(`no lab: ${owner.stderr}`);
  };

  test.each(['SIGINT', 'SIGTERM'] as const)('%s removes the lab and ends the process', async (signal) => {
    const { owner, name, pid } = await start();
    expect(remains(name)).toHaveLength(5);
    expect(alive(pid)).toBe(true);
    expect(await owner.kill(signal)).toEqual({ code: null, signal });
    expect(remains(name)).toEqual([]);
    expect(alive(pid)).toBe(false);
  });

  test('process.exit() removes the lab', async () => {
    const { owner, name, pid } = await start();
    owner.child.stdin.write('\n');
    expect(await owner.exited).toEqual({ code: 0, signal: null });
    expect(remains(name)).toEqual([]);
    expect(alive(pid)).toBe(false);
  });

  test('what SIGKILL leaves behind, the next lab removes', async () => {
    const { owner, name, pid } = await start();
    await owner.kill('SIGKILL');
    expect(remains(name)).toHaveLength(5);
    lab = await Lab.create();
    expect(remains(name)).toEqual([]);
    expect(alive(pid)).toBe(false);
  });
});

describe('linux guest', () => {
  /** Reads QMP events of one kind; enough for a test without Holdfast. */
  const qmpEvents = (path: string): readonly string[] => {
    const socket = connect(path);
    socket.write('{"execute":"qmp_capabilities"}');
    const events: string[] = [];
    createInterface({ input: socket }).on('line', (line) => {
      const { event } = JSON.parse(line) as { event?: string };
      if (event !== undefined) events.push(event);
    });
    socket.on('error', () => {});
    return events;
  };

  test('serves redis, reboots on its own command, and leaves nothing behind', {
    timeout: 120_000,
  }, async () => {
    lab = await Lab.create({ tag: 'guest' });
    const { name, client } = lab;
    const serialPath = lab.path('serial.log');
    const qemu = await lab
      .host('a')
      .spawn(
        'qemu-system-x86_64',
        guestArgs({ serialPath, vcpus: 2, ramPath: lab.sharedMemoryPath('ram'), qmpPath: lab.path('qmp') }),
      );
    await waitForText(serialPath, guestReadyText);
    expect(readText(`/proc/${qemu.pid}/comm`)).toContain('qemu-system');

    const load = await RedisLoad.start(client, { connections: 3 });
    const startEpochMs = Date.now();
    await waitFor('two seconds of load', () => Date.now() - startEpochMs >= 2000);
    await load.advance(10);
    const summary = await load.stop();
    expect(summary).toMatchObject({ ok: true, connections: 3, lost: 0, violationCount: 0, broken: [] });
    expect(summary.acknowledged).toBeGreaterThan(100);
    expect(summary.keys.map((key) => key.finalOverFresh)).toEqual(
      summary.keys.map((key) => key.acknowledged),
    );
    expect(summary.longestStallStartEpochMs).toBeGreaterThan(startEpochMs - 1000);

    expect(await guestCommand(client, 'nproc; ls /nowhere; exit 3')).toMatchObject({
      code: 3,
      output: expect.stringMatching(/^2\n.*No such file/),
    });
    await startMemwriter(client, { pagesPerSecond: 20_000, workingSetPages: 2000, randomOrder: true });
    const report = await checkMemwriter(client);
    expect(report.errors).toBe(0);
    expect(report.checked).toBeGreaterThanOrEqual(2000);

    const bootId = await guestBootId(client);
    const events = qmpEvents(lab.path('qmp'));
    await rebootGuest(client);
    await waitFor('QMP RESET', () => events.includes('RESET'));
    await waitForText(serialPath, guestReadyText, { count: 2 });
    expect(await guestBootId(client)).not.toBe(bootId);
    expect(countInFile(serialPath, 'ERROR')).toBe(0);
    expect(qemu.running).toBe(true);

    await lab.close();
    expect(remains(name)).toEqual([]);
    expect(alive(qemu.pid)).toBe(false);
  });

  test('redis load reports a connection that breaks, and what was lost', async () => {
    lab = await Lab.create({ tag: 'lost' });
    const serialPath = lab.path('serial.log');
    await lab.host('a').spawn('qemu-system-x86_64', guestArgs({ serialPath }));
    await waitForText(serialPath, guestReadyText);
    const load = await RedisLoad.start(lab.client, { connections: 2, drainTimeoutMs: 3000 });
    await load.advance(20);
    // A guest whose memory is from before the increments would answer just like this.
    await guestCommand(
      lab.client,
      'printf "DEL counter0\\r\\nCLIENT KILL TYPE normal\\r\\n" | nc 127.0.0.1 6379',
    );
    await waitFor('the connections to break', () => load.brokenConnections === 2);
    const summary = await load.stop();
    expect(summary.ok).toBe(false);
    expect(summary.broken).toHaveLength(2);
    expect(summary.lost + summary.violationCount).toBeGreaterThan(0);
  });

  test('memwriter notices a page that changed under its hands', async () => {
    lab = await Lab.create({ tag: 'damage' });
    const serialPath = lab.path('serial.log');
    const ramPath = lab.sharedMemoryPath('ram');
    const options = {
      serialPath,
      ramPath,
      workload: 'writer',
      pagesPerSecond: 100,
      workingSetPages: 4000,
    } as const;
    await lab.host('a').spawn('qemu-system-x86_64', guestArgs(options));
    await waitForText(serialPath, guestReadyText);
    expect((await checkMemwriter(lab.client)).errors).toBe(0);
    await damagePage(ramPath);
    expect((await checkMemwriter(lab.client)).errors).toBe(1);
  });
});
