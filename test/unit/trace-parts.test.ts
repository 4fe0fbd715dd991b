/** The small parts of a trace: what is parsed, mapped, marked, kept and summed up. */
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { checkTracing } from '../../lib/doctor/trace-check.js';
import { ConfigError, UnsupportedHostError, UnsupportedVmError } from '../../lib/errors.js';
import { EpochSegments } from '../../lib/trace/epoch-segments.js';
import { parsePhysicalRanges } from '../../lib/trace/guest-ram.js';
import { decodeGuestChanges, guestSlices } from '../../lib/trace/guest-slices.js';
import { parseGuestSymbols } from '../../lib/trace/guest-symbols.js';
import { marksOfVmEvents } from '../../lib/trace/marks.js';
import { mapProcesses } from '../../lib/trace/process-mapping.js';
import { parseCoreList, sharedThreadNotes, vcpuThreads } from '../../lib/trace/threads.js';
import { parseFormat, readTracepoints } from '../../lib/trace/tracefs.js';

describe('tracefs', () => {
  it('a format tells the id, and where each field lies', () => {
    const format = parseFormat(`name: sched_switch
ID: 372
format:
\tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;

\tfield:char prev_comm[16];\toffset:8;\tsize:16;\tsigned:0;
\tfield:pid_t prev_pid;\toffset:24;\tsize:4;\tsigned:1;
\tfield:__data_loc char[] comm;\toffset:28;\tsize:4;\tsigned:0;

print fmt: "prev_comm=%s prev_pid=%d", REC->prev_comm, REC->prev_pid
`);
    expect(format?.id).toBe(372);
    expect([...(format?.offsets ?? [])]).toEqual([
      ['common_type', 0],
      ['prev_comm', 8],
      ['prev_pid', 24],
      ['comm', 28],
    ]);
    expect(parseFormat('nothing')).toBeUndefined();
  });

  it('where it is not mounted, the error says how to', async () => {
    const dir = await mkdtemp(join(tmpdir(), 'holdfast-trace-'));
    try {
      const failure = await readTracepoints(
        {
          readTracefs: () => {
            throw new Error('EPERM');
          },
        },
        [dir],
      ).catch((error: unknown) => error);
      expect(failure).toBeInstanceOf(UnsupportedHostError);
      expect((failure as UnsupportedHostError).cure).toContain('mount -t tracefs');
    } finally {
      await rm(dir, { recursive: true });
    }
  });
});

describe('doctor: scheduler events', () => {
  class SchedTrace {
    async start(): Promise<void> {
      throw Object.assign(new Error('scheduler events of core 0'), {
        ...{ code: 'HOLDFAST_E_UNSUPPORTED', errno: 13, syscall: 'perf_event_open' },
      });
    }
  }
  const format = `ID: 1\n${['prev_pid', 'prev_state', 'next_pid', 'pid', 'orig_cpu', 'dest_cpu', 'target_cpu']
    .map((name, index) => `\tfield:int ${name};\toffset:${8 + 4 * index};`)
    .join('\n')}`;

  it('what is not allowed is a warning, with its cure', async () => {
    const check = await checkTracing({ SchedTrace: SchedTrace as never, readTracefs: () => format });
    expect(check).toMatchObject({ id: 'trace', status: 'warn', found: expect.stringContaining('core 0') });
    expect(check.cure).toMatch(/^Needed by holdfast trace and --trace alone\. Run as root/);
  });
});

describe('threads', () => {
  it('cores as the kernel lists them', () => {
    expect(parseCoreList('0-3,8\n')).toEqual([0, 1, 2, 3, 8]);
    expect(parseCoreList('0\n')).toEqual([0]);
  });

  it('vCPUs with threads of their own, and such that share one, which is said', () => {
    const own = vcpuThreads([
      { 'cpu-index': 0, 'thread-id': 11 },
      { 'cpu-index': 1, 'thread-id': 12 },
    ]);
    expect(own.map(({ tid, label }) => [tid, label])).toEqual([
      [11, 'vCPU 0'],
      [12, 'vCPU 1'],
    ]);
    expect(sharedThreadNotes(own)).toEqual([]);
    const shared = vcpuThreads([
      { 'cpu-index': 0, 'thread-id': 11 },
      { 'cpu-index': 1, 'thread-id': 11 },
    ]);
    expect(shared).toEqual([{ tid: 11, vcpus: [0, 1], label: 'vCPUs 0, 1' }]);
    expect(sharedThreadNotes(shared)[0]).toContain('thread=single');
  });
});

const symbolLines = `ffffffff9e000000 T _text
ffffffff9f000040 D linux_banner
ffffffff9f800000 R __per_cpu_offset
0000000000034a80 A runqueues
ffffffff9f300000 r __start_BTF
ffffffff9f700000 r __stop_BTF
ffffffff9f800810 D page_offset_base
`;

describe("the guest's symbols", () => {
  it('are read from lines of kallsyms; modules and others are passed over', () => {
    const symbols = parseGuestSymbols(`${symbolLines}ffffffffc0000000 t runqueues\t[evil]\nrubbish\n`);
    expect(symbols._text).toBe(0xffffffff9e000000n);
    expect(symbols.runqueues).toBe(0x34a80n);
    expect(symbols.page_offset_base).toBe(0xffffffff9f800810n);
  });

  it('may lack page_offset_base, but nothing else', () => {
    expect(
      parseGuestSymbols(symbolLines.replace(/.*page_offset_base\n/, '')).page_offset_base,
    ).toBeUndefined();
    const failure = (): unknown => parseGuestSymbols(symbolLines.replace(/.*__start_BTF\n/, ''));
    expect(failure).toThrow(ConfigError);
    expect(failure).toThrow('__start_BTF');
  });

  it('without addresses are refused: kptr_restrict', () => {
    expect(() => parseGuestSymbols(symbolLines.replace(/^[0-9a-f]{16}/gm, '0'.repeat(16)))).toThrow(
      'no addresses',
    );
  });
});

describe("where the guest's memory lies", () => {
  const tree = `FlatView #0
 AS "I/O", root: io
 Root memory region: io
  0000000000000000-0000000000000007 (prio 0, i/o): dma-chan

FlatView #1
 AS "memory", root: system
 AS "cpu-memory-0", root: system
 Root memory region: system
  0000000000000000-000000000009ffff (prio 0, ram): ram0
  00000000000c0000-00000000000c3fff (prio 0, rom): ram0 @00000000000c0000
  00000000000c4000-000000007fffffff (prio 0, ram): ram0 @00000000000c4000
  00000000feb80000-00000000feb80fff (prio 1, ram): vga.vram
  00000000fffc0000-00000000ffffffff (prio 0, rom): pc.bios
  0000000100000000-000000017fffffff (prio 0, ram): ram0 @0000000080000000

FlatView #2
 AS "virtio-pci-cfg-mem-as", root: virtio-pci
`;

  it('below and above the hole for PCI; neighbours are one', () => {
    expect(parsePhysicalRanges(tree, 'ram0')).toEqual([
      { start: 0, bytes: 0xa0000, ramOffset: 0 },
      { start: 0xc0000, bytes: 0x80000000 - 0xc0000, ramOffset: 0xc0000 },
      { start: 2 ** 32, bytes: 2 ** 31, ramOffset: 2 ** 31 },
    ]);
  });

  it('a backend that is not there is an error', () => {
    expect(() => parsePhysicalRanges(tree, 'other')).toThrow(UnsupportedVmError);
  });
});

describe('guest processes', () => {
  const change = (atUs: number, vcpu: number, tid: number, name: string) => ({
    atUs,
    vcpu,
    tid,
    pid: tid,
    name,
  });

  it('run until the next change of their vCPU, the last to the end', () => {
    const slices = guestSlices([change(0, 0, 5, 'a'), change(4, 1, 6, 'b'), change(10, 0, 0, 'swapper')], 20);
    expect(slices.map(({ vcpu, fromUs, toUs, name }) => [vcpu, fromUs, toUs, name])).toEqual([
      [0, 0, 10, 'a'],
      [1, 4, 20, 'b'],
      [0, 10, 20, 'swapper'],
    ]);
  });

  it('are read as the addon writes them', () => {
    const bytes = Buffer.alloc(24);
    bytes.writeBigUInt64LE(2_000n, 0);
    bytes.writeUInt16LE(3, 8);
    bytes.writeInt32LE(812, 12);
    bytes.writeInt32LE(800, 16);
    bytes.writeUInt32LE(1, 20);
    expect(decodeGuestChanges(bytes, ['x', 'redis'], 1_000)).toEqual([
      { atUs: 1, vcpu: 3, tid: 812, pid: 800, name: 'redis' },
    ]);
  });

  it('get what their vCPUs got of the cores', () => {
    const slices = guestSlices(
      [change(0, 0, 5, 'a'), change(10, 0, 6, 'b'), change(16, 0, 0, 'swapper/0')],
      20,
    );
    const cores = [
      { core: 0, fromUs: 2, toUs: 8, ended: 'slept' as const },
      { core: 1, fromUs: 9, toUs: 12, ended: 'slept' as const },
    ];
    const [a, b, ...others] = mapProcesses(slices, new Map([[0, cores]]));
    expect(others).toEqual([]);
    expect(a).toMatchObject({ name: 'a', onVcpuUs: 10, onCoreUs: 7 });
    expect([...(a?.coreUs ?? [])]).toEqual([
      [0, 6],
      [1, 1],
    ]);
    expect(b).toMatchObject({ name: 'b', onVcpuUs: 6, onCoreUs: 2 });
  });

  it('never get more of the cores than of their vCPU', () => {
    const times = fc.array(fc.nat(1_000), { minLength: 2, maxLength: 40 });
    fc.assert(
      fc.property(times, times, (changes, switches) => {
        const sorted = [...new Set(switches)].sort((a, b) => a - b);
        const cores = sorted.slice(1).map((toUs, index) => ({
          ...{ core: index % 2, fromUs: sorted[index]!, toUs, ended: 'slept' as const },
        }));
        const slices = guestSlices(
          changes.map((atUs, index) => change(atUs, 0, (index % 3) + 1, `p${index % 3}`)),
          1_000,
        );
        for (const process of mapProcesses(slices, new Map([[0, cores]]))) {
          expect(process.onCoreUs).toBeLessThanOrEqual(process.onVcpuUs);
        }
        const ranUs = cores.reduce((sum, { fromUs, toUs }) => {
          const first = Math.min(...changes);
          return sum + Math.max(0, toUs - Math.max(fromUs, first));
        }, 0);
        const gotUs = mapProcesses(slices, new Map([[0, cores]])).reduce(
          (sum, { onCoreUs }) => sum + onCoreUs,
          0,
        );
        expect(gotUs).toBe(ranUs);
      }),
    );
  });
});

describe('marks', () => {
  it('pauses from STOP to RESUME, also such that began before, or have not ended', () => {
    const events = [
      { name: 'RESUME', atUs: 5 },
      { name: 'STOP', atUs: 10 },
      { name: 'RESUME', atUs: 12 },
      { name: 'STOP', atUs: 90 },
    ];
    expect(marksOfVmEvents(events, true, 100).map(({ fromUs, toUs }) => [fromUs, toUs])).toEqual([
      [0, 5],
      [10, 12],
      [90, 100],
    ]);
  });

  it('migrations, with how they ended', () => {
    const events = [
      { name: 'MIGRATION', atUs: 10, status: 'setup' },
      { name: 'MIGRATION', atUs: 20, status: 'active' },
      { name: 'MIGRATION', atUs: 30, status: 'completed' },
    ];
    expect(marksOfVmEvents(events, false, 100)).toEqual([
      { kind: 'migration', label: 'migration: completed', fromUs: 10, toUs: 30 },
    ]);
  });
});

describe('epochs that are kept', () => {
  const add = (segments: EpochSegments<number>, index: number, pauseMs: number, events = 10): void =>
    segments.add({ fromUs: index, toUs: index + 1, pauseMs, events, payload: index });

  it('all, as long as there is room', () => {
    const segments = new EpochSegments<number>({ eventsMax: 100, slowestMax: 2 });
    for (let index = 0; index < 10; index += 1) add(segments, index, 1);
    expect(segments.kept()).toHaveLength(10);
  });

  it('the latest, and the slowest of those before; bounded, whatever comes', () => {
    fc.assert(
      fc.property(
        fc.array(fc.record({ pauseMs: fc.nat(50), events: fc.nat(30) }), { maxLength: 200 }),
        (epochs) => {
          const segments = new EpochSegments<number>({ eventsMax: 100, slowestMax: 3 });
          epochs.forEach(({ pauseMs, events }, index) => {
            add(segments, index, pauseMs, events);
          });
          const kept = segments.kept().map(({ payload }) => payload);
          expect(segments.added).toBe(epochs.length);
          expect(kept).toEqual([...kept].sort((a, b) => a - b));
          // From the end on as many as fit: these are the latest, whatever their pauses.
          let latest = epochs.length;
          for (let events = 0; latest > 0; latest -= 1) {
            events += epochs[latest - 1]!.events;
            if (events > 100 && latest < epochs.length) break;
          }
          const earlier = epochs.slice(0, latest).map(({ pauseMs }) => pauseMs);
          const slowest = earlier.sort((a, b) => b - a).slice(0, 3);
          expect(kept.filter((index) => index >= latest)).toHaveLength(epochs.length - latest);
          const keptEarlier = kept.filter((index) => index < latest).map((index) => epochs[index]!.pauseMs);
          expect(keptEarlier.sort((a, b) => b - a)).toEqual(slowest);
        },
      ),
    );
  });
});
