/** QEMU command lines: parsing, and what becomes of one on the primary and the standby. */

import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { ConfigError } from '../../lib/errors.js';
import {
  forPrimary,
  forStandby,
  listValue,
  parseArguments,
  parseList,
  parseSize,
  renderArguments,
  renderList,
  withoutIncoming,
} from '../../lib/vm/command-line.js';

const words = (line: string): string[] => line.split(' ');
const primaryPaths = { ramPath: '/dev/shm/vm.ram', qmpPath: '/run/hf.qmp' };
const OUR_QMP = '-qmp unix:/run/hf.qmp,server=on,wait=off';

describe('01 the grammar', () => {
  test('flags, values, double dashes and positional images', () => {
    expect(parseArguments(['--nographic', '-m', '512', 'disk.img', '-S', '-kernel', '-odd'])).toEqual([
      { name: 'nographic' },
      { name: 'm', value: '512' },
      { name: '', value: 'disk.img' },
      { name: 'S' },
      { name: 'kernel', value: '-odd' },
    ]);
  });

  test('a value that is missing', () => {
    expect(() => parseArguments(['-m'])).toThrow(/-m lacks its value/);
  });

  test('a doubled comma is a comma', () => {
    expect(parseList('socket,path=/a,,b,server=on')).toEqual([
      { value: 'socket' },
      { key: 'path', value: '/a,b' },
      { key: 'server', value: 'on' },
    ]);
  });

  test('arguments survive parsing and rendering', () => {
    const option = fc.oneof(
      fc.constantFrom(['-S'], ['-nodefaults'], ['disk.img']),
      fc.tuple(fc.constantFrom('-m', '-device', '-append', '-kernel'), fc.string()),
    );
    fc.assert(
      fc.property(fc.array(option), (options) => {
        const argv = options.flat();
        expect(renderArguments(parseArguments(argv))).toEqual(argv);
      }),
    );
  });

  test('lists survive rendering and parsing, whatever is in the values', () => {
    const part = fc.oneof(
      fc.record({ key: fc.stringMatching(/^[a-z][a-z-]{0,8}$/), value: fc.string() }),
      // A bare word has no '=': with one it is a key and a value.
      fc
        .string({ minLength: 1 })
        .filter((text) => !text.includes('='))
        .map((value) => ({ value })),
    );
    // An empty word next to a comma cannot be told from `,,`: QEMU has no such values either.
    fc.assert(
      fc.property(fc.array(part, { minLength: 1 }), (parts) => {
        const text = renderList(parts);
        fc.pre(!parts.some(({ value }) => value.startsWith(',') || value.endsWith(',')));
        expect(parseList(text)).toEqual(parts);
      }),
    );
  });

  test('values of lists, of JSON, and of the first word', () => {
    expect(listValue('tap,id=n0,vhost=on', 'vhost')).toBe('on');
    expect(listValue('tap,id=n0', 'type', 'type')).toBe('tap');
    expect(listValue('tap,id=n0', 'type')).toBeUndefined();
    expect(listValue('{"qom-type":"x","share":true,"size":4}', 'share')).toBe('on');
    expect(listValue('{"qom-type":"x","share":true,"size":4}', 'size')).toBe('4');
  });

  for (const [text, unit, bytes] of [
    ['512', 'M', 512 * 2 ** 20],
    ['512', 'B', 512],
    ['2G', 'M', 2 ** 31],
    ['1.5g', 'M', 1.5 * 2 ** 30],
    ['64k', 'M', 65536],
  ] as const) {
    test(`size ${text} (${unit}) is ${bytes}`, () => expect(parseSize(text, unit)).toBe(bytes));
  }

  test('what is not a size', () => {
    for (const text of ['', '-1', '0', '12X', 'M']) expect(() => parseSize(text, 'M')).toThrow(ConfigError);
  });
});

describe('02 for the primary', () => {
  const addedRam = (bytes: number): string =>
    `-object memory-backend-file,id=ram,size=${bytes},mem-path=/dev/shm/vm.ram,share=on -machine memory-backend=ram ${OUR_QMP}`;

  for (const [what, line, expected] of [
    ['-m in MiB', '-M q35 -m 512', `-M q35 -m 512 ${addedRam(512 * 2 ** 20)}`],
    ['-m size=', '-m size=1G,slots=2,maxmem=4G', `-m size=1G,slots=2,maxmem=4G ${addedRam(2 ** 30)}`],
    ['no -m', '-M q35', `-M q35 ${addedRam(128 * 2 ** 20)}`],
    ['the last -m', '-m 1 -m 2', `-m 1 -m 2 ${addedRam(2 * 2 ** 20)}`],
    ['-daemonize goes', '-daemonize -m 64', `-m 64 ${addedRam(64 * 2 ** 20)}`],
    ['an uneven size is rounded up as QEMU does', '-m 8193B', `-m 8193B ${addedRam(16384)}`],
  ] as const) {
    test(what, () => expect(forPrimary(words(line), primaryPaths).argv.join(' ')).toBe(expected));
  }

  test("the user's own shared file is kept", () => {
    const line =
      '-M q35,memory-backend=mem0 -m 64 -object memory-backend-file,id=mem0,size=64M,mem-path=/dev/shm/own,share=on';
    const { argv, ram } = forPrimary(words(line), primaryPaths);
    expect(argv.join(' ')).toBe(`${line} ${OUR_QMP}`);
    expect(ram).toEqual({ id: 'mem0', path: '/dev/shm/own', sizeBytes: 64 * 2 ** 20, added: false });
  });

  test('also in JSON, as libvirt writes it', () => {
    const object =
      '{"qom-type":"memory-backend-file","id":"pc.ram","mem-path":"/dev/shm/own","share":true,"size":67108864}';
    const { ram } = forPrimary(
      ['-machine', 'q35,memory-backend=pc.ram', '-m', '64', '-object', object],
      primaryPaths,
    );
    expect(ram).toMatchObject({ id: 'pc.ram', path: '/dev/shm/own', added: false });
  });

  test('an id that is taken is not used again', () => {
    const { ram } = forPrimary(words('-object rng-random,id=ram -m 64'), primaryPaths);
    expect(ram.id).toBe('ram1');
  });

  for (const [what, line, message] of [
    [
      'private backend',
      '-M q35,memory-backend=m -object memory-backend-ram,id=m,size=64M',
      /'m' is not a shared file/,
    ],
    [
      'share=off',
      '-M q35,memory-backend=m -object memory-backend-file,id=m,size=64M,mem-path=/x',
      /not a shared file/,
    ],
    ['no such backend', '-M q35,memory-backend=m', /no such -object/],
    ['-mem-path', '-mem-path /dev/shm', /private mapping/],
    ['-incoming', '-incoming defer', /-incoming/],
    ['two NUMA backends', '-numa node,memdev=a -numa node,memdev=b', /several memory backends/],
  ] as const) {
    test(`${what} is refused`, () => {
      expect(() => forPrimary(words(line), primaryPaths)).toThrow(ConfigError);
      expect(() => forPrimary(words(line), primaryPaths)).toThrow(message);
    });
  }
});

describe('03 for the standby', () => {
  test('one that was a standby itself is started again as it ran', () => {
    const ran = ['-m', '1G', '-incoming', 'defer', '-S'];
    expect(withoutIncoming(ran)).toEqual(['-m', '1G', '-S']);
    const paths = { ramPath: '/dev/shm/ram', qmpPath: '/run/qmp.sock' };
    expect(() => forPrimary(ran, paths)).toThrow('-incoming');
    expect(forPrimary(withoutIncoming(ran), paths).ram.sizeBytes).toBe(2 ** 30);
  });

  const standby = { ramPath: '/dev/shm/replica', qmpPath: '/run/hf.qmp', machineType: 'pc-q35-7.2' };
  const ram = '-object memory-backend-file,id=ram,size=64M,mem-path=/dev/shm/vm.ram,share=on';
  const replica = '-object memory-backend-file,id=ram,size=64M,mem-path=/dev/shm/replica,share=on';
  const tail = `${OUR_QMP} -incoming defer`;

  for (const [what, line, expected] of [
    [
      'the machine gets its version and no description of the stream',
      `-M q35,kernel-irqchip=on -machine memory-backend=ram -m 64 ${ram}`,
      `-machine pc-q35-7.2,kernel-irqchip=on,memory-backend=ram,suppress-vmdesc=on -m 64 ${replica} ${tail}`,
    ],
    [
      'type= as a key',
      `-machine type=q35,memory-backend=ram,suppress-vmdesc=off ${ram}`,
      `-machine pc-q35-7.2,memory-backend=ram,suppress-vmdesc=on ${replica} ${tail}`,
    ],
    [
      'monitors, debugger, pid file and what starts the VM are left out',
      `-S -s -qmp unix:/a,server=on -monitor stdio -pidfile /p -daemonize -gdb tcp::1 -machine memory-backend=ram ${ram} -chardev socket,id=m0,path=/x,server=on -mon chardev=m0,mode=control`,
      `-machine pc-q35-7.2,memory-backend=ram,suppress-vmdesc=on ${replica} ${tail}`,
    ],
    [
      'the replica is neither touched at the start nor discarded at the end',
      `-machine memory-backend=ram ${ram},prealloc=on,prealloc-threads=4,discard-data=on`,
      `-machine pc-q35-7.2,memory-backend=ram,suppress-vmdesc=on ${replica} ${tail}`,
    ],
  ] as const) {
    test(what, () => expect(forStandby(words(line), standby).join(' ')).toBe(expected));
  }

  for (const own of ['', ',suppress-vmdesc=on', ',suppress-vmdesc=off']) {
    test(`one that loads a whole migration describes the stream as the source does (${own || 'by default'})`, () => {
      const line = words(`-machine q35,memory-backend=ram${own} ${ram}`);
      expect(forStandby(line, { ...standby, loads: 'migration' }).join(' ')).toBe(
        `-machine pc-q35-7.2,memory-backend=ram${own} ${replica} ${tail}`,
      );
    });
  }

  test('what forPrimary made is what forStandby takes', () => {
    const { argv } = forPrimary(words('-M q35 -m 64 -nodefaults'), primaryPaths);
    expect(forStandby(argv, { ...standby, pidfile: '/run/pid' }).join(' ')).toBe(
      `-machine pc-q35-7.2,memory-backend=ram,suppress-vmdesc=on -m 64 -nodefaults -object memory-backend-file,id=ram,size=67108864,mem-path=/dev/shm/replica,share=on ${tail} -pidfile /run/pid`,
    );
  });

  test('without a RAM backend there is nothing to put the replica into', () => {
    expect(() => forStandby(words('-M q35 -m 64'), standby)).toThrow(ConfigError);
  });

  const replacements = [
    { from: '/images', to: '/srv/vm' },
    { from: 'tap0', to: 'tap9' },
    { from: '/run/a,b', to: '/run/c,d' },
  ];
  for (const [what, from, to] of [
    ['a path below', '-drive if=none,file=/images/x.raw', '-drive if=none,file=/srv/vm/x.raw'],
    ['the path itself', '-virtfs local,path=/images', '-virtfs local,path=/srv/vm'],
    ['not a path that only begins alike', '-drive file=/images2/x', '-drive file=/images2/x'],
    ['a tap device, but no id', '-netdev tap,id=tap0,ifname=tap0', '-netdev tap,id=tap0,ifname=tap9'],
    ['no reference either', '-device virtio-net-pci,netdev=tap0', '-device virtio-net-pci,netdev=tap0'],
    ['old-style character devices', '-serial unix:/images/s,server=on', '-serial unix:/srv/vm/s,server=on'],
    ['and with a monitor on them', '-serial mon:unix:/images/s', '-serial mon:unix:/srv/vm/s'],
    ['files', '-serial file:/images/log', '-serial file:/srv/vm/log'],
    ['plain values', '-kernel /images/vmlinuz', '-kernel /srv/vm/vmlinuz'],
    ['positional images', '/images/disk', '/srv/vm/disk'],
    ['commas in paths', '-chardev socket,id=c,path=/run/a,,b', '-chardev socket,id=c,path=/run/c,,d'],
    [
      'JSON',
      '-blockdev {"driver":"file","node-name":"tap0","filename":"/images/x"}',
      '-blockdev {"driver":"file","node-name":"tap0","filename":"/srv/vm/x"}',
    ],
    ['kernel arguments are left alone', '-append root=/images', '-append root=/images'],
  ] as const) {
    test(`replaced: ${what}`, () => {
      const argv = forStandby(words(`-machine memory-backend=ram ${ram} ${from}`), {
        ...standby,
        replacements,
      });
      expect(argv.join(' ')).toContain(` ${to} `);
    });
  }

  test('without replacements nothing but the machine, RAM and monitors changes', () => {
    const value = fc.stringMatching(/^[a-z0-9/.=,]{1,20}$/);
    fc.assert(
      fc.property(fc.array(value), (values) => {
        const others = values.flatMap((text) => ['-device', text]);
        const argv = forStandby([...words(`-machine memory-backend=ram ${ram}`), ...others], standby);
        expect(argv.filter((_, index) => argv[index - 1] === '-device')).toEqual(values);
      }),
    );
  });
});
