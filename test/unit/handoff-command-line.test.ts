import { describe, expect, it } from 'vitest';
import { ConfigError } from '../../lib/errors.js';
import { forHandoff, temporaryOf } from '../../lib/handoff/command-line.js';

const RAM = '-object memory-backend-file,id=ram,size=64M,share=on,mem-path=/dev/shm/a';
const MACHINE = '-M q35,memory-backend=ram';

const plan = (line: string, ramPath = '/dev/shm/a') =>
  forHandoff(`${MACHINE} ${RAM} ${line}`.trim().split(' '), {
    ram: new Map([['ram', ramPath]]),
    machineType: 'pc-q35-7.2',
    tapNameOf: (netdev) => `hf-${netdev}`,
  });

/** What the new QEMU is started with in place of an option. */
const started = (line: string): string => plan(line).argv.slice(4, -3).join(' ');
const refused = (line: string): string[] => plan(line).refused.map(({ what }) => what);

describe('01 the new QEMU', () => {
  it('waits for the state, of the machine that the alias means now, over the same RAM', () => {
    expect(plan('').argv).toEqual([
      ...['-machine', 'type=pc-q35-7.2,memory-backend=ram'],
      ...['-object', 'memory-backend-file,id=ram,size=64M,share=on,mem-path=/dev/shm/a'],
      ...['-S', '-incoming', 'defer'],
    ]);
  });

  it('has not what started or loaded the other one', () => {
    const { argv } = plan('-S -daemonize -incoming defer -loadvm x -mem-prealloc');
    expect(argv).toEqual(plan('').argv);
  });

  it('opens RAM without touching, or throwing away, what is in it', () => {
    const { argv } = forHandoff(
      ['-object', 'memory-backend-file,id=ram,size=1G,mem-path=/a,share=on,prealloc=on,discard-data=on'],
      { ram: new Map([['ram', '/a']]), machineType: 'pc-q35-7.2', tapNameOf: String },
    );
    expect(argv).toContain('memory-backend-file,id=ram,size=1G,mem-path=/a,share=on');
  });

  it('opens a memfd by the descriptor that it inherits', () => {
    const options = {
      ram: new Map([['ram', '/proc/self/fd/3']]),
      machineType: 'pc-q35-7.2',
      tapNameOf: String,
    };
    const list = forHandoff(['-object', 'memory-backend-memfd,id=ram,size=1G,share=on,seal=off'], options);
    const file = 'memory-backend-file,id=ram,size=1G,mem-path=/proc/self/fd/3,share=on';
    expect(list.argv).toContain(file);
    const json = forHandoff(
      ['-object', '{"qom-type":"memory-backend-memfd","id":"ram","size":64,"hugetlb":false}'],
      options,
    );
    expect(JSON.parse(json.argv.find((word) => word.startsWith('{'))!)).toEqual({
      'qom-type': 'memory-backend-file',
      id: 'ram',
      size: 64,
      'mem-path': '/proc/self/fd/3',
      share: true,
    });
    // And from there the next one.
    expect(forHandoff(list.known, options).argv).toContain(file);
  });

  it('is refused a command line without the backend', () => {
    expect(() =>
      forHandoff(['-m', '1G'], { ram: new Map([['ram', '/a']]), machineType: 'q35', tapNameOf: String }),
    ).toThrow(ConfigError);
  });
});

describe('02 names that only one can have', () => {
  it.each([
    ['-qmp unix:/run/q,server=on,wait=off', '-qmp unix:/run/q.new,server=on,wait=off'],
    ['-qmp unix:/run/q,server', '-qmp unix:/run/q.new,server,wait=off'],
    ['-monitor unix:m,server,nowait', '-monitor unix:m.new,server,wait=off'],
    ['-serial mon:unix:/run/s,server=on', '-serial mon:unix:/run/s.new,server=on,wait=off'],
    ['-chardev socket,id=c,path=/run/c,server=on', '-chardev socket,id=c,server=on,path=/run/c.new,wait=off'],
    ['-pidfile /run/pid', '-pidfile /run/pid.new'],
    [
      '-netdev stream,id=n,server=on,addr.type=unix,addr.path=/run/n',
      '-netdev stream,id=n,server=on,addr.type=unix,addr.path=/run/n.new',
    ],
    [
      '-netdev {"type":"stream","id":"n","server":true,"addr":{"type":"unix","path":"/run/n"}}',
      '-netdev {"type":"stream","id":"n","server":true,"addr":{"type":"unix","path":"/run/n.new"}}',
    ],
  ])('%s', (option, expected) => {
    expect(started(option)).toBe(expected);
    const { moves, known, refused } = plan(option);
    expect(refused).toEqual([]);
    expect(moves).toMatchObject([{ temporary: `${moves[0]!.path}.new` }]);
    expect(known.join(' ')).toContain(option);
  });

  it('a tap has another name, and its own afterwards', () => {
    const { taps, known } = plan('-netdev tap,id=n,ifname=tap0,script=no,downscript=no');
    expect(started('-netdev tap,id=n,ifname=tap0,script=no,downscript=no')).toBe(
      '-netdev tap,id=n,script=no,downscript=no,ifname=hf-n',
    );
    expect(taps).toEqual([{ netdev: 'n', tap: 'tap0' }]);
    expect(known).toContain('tap,id=n,ifname=tap0,script=no,downscript=no');
  });

  it('clients, and what the guest does not see, stay', () => {
    for (const option of [
      '-chardev socket,id=c,path=/run/c',
      '-serial tcp:10.0.0.1:23',
      '-netdev bridge,id=n,br=br0',
      '-vnc none',
      '-nic none',
      '-serial null',
    ]) {
      expect(started(option)).toBe(option);
      expect(plan(option)).toMatchObject({ moves: [], refused: [] });
    }
  });

  it('files that are written to are not emptied', () => {
    expect(started('-serial file:/log')).toBe(
      '-chardev file,id=holdfast-file1,path=/log,append=on -serial chardev:holdfast-file1',
    );
    expect(started('-chardev file,id=c,path=/log')).toBe('-chardev file,id=c,path=/log,append=on');
    expect(started('-chardev null,id=c,logfile=/log')).toBe('-chardev null,id=c,logfile=/log,logappend=on');
    expect(plan('-serial file:/log').known.join(' ')).toContain('-serial file:/log');
  });

  it('the monitor is found by its true name', () => {
    const { moves } = plan('-qmp unix:vm/q,server=on,wait=off');
    expect(temporaryOf(moves, '/run/vm/q', '/run')).toBe('/run/vm/q.new');
    expect(temporaryOf(moves, '/run/q', '/run')).toBeUndefined();
  });
});

describe('03 what cannot be had twice, nor renamed, is refused', () => {
  it.each([
    '-serial stdio',
    '-serial mon:stdio',
    '-monitor pty',
    '-chardev stdio,id=c',
    '-nographic',
    '-qmp tcp:127.0.0.1:4444,server=on,wait=off',
    '-chardev socket,id=c,host=0.0.0.0,port=1,server=on',
    '-chardev socket,id=c,path=x,abstract=on,server=on',
    '-chardev socket,id=c,fd=7,server=on',
    '-vnc :1',
    '-spice port=5900',
    '-s',
    '-gdb tcp::1234',
    '-snapshot',
    '-drive file=/a,snapshot=on',
    '-readconfig /etc/vm',
    '-add-fd fd=3,set=1',
    '-nic user',
    '-netdev user,id=n',
    '-netdev tap,id=n,fd=7',
    '-netdev tap,id=n,ifname=tap0',
    '-netdev stream,id=n,addr.type=unix,addr.path=/run/n',
    `-pidfile /run/pid -qmp unix:/${'x'.repeat(103)},server=on`,
  ])('%s', (option) => {
    expect(refused(option)).toHaveLength(1);
  });

  it('-nographic with lines of its own is fine', () => {
    expect(refused('-nographic -nodefaults')).toEqual([]);
    expect(refused('-nographic -serial null -monitor none')).toEqual([]);
  });
});

describe('04 a checkpoint by hand-off', () => {
  const overlays = new Map([['/vm/a.raw', '/vm/a.raw.over']]);
  const over = (line: string) =>
    forHandoff(`${MACHINE} ${RAM} ${line}`.split(' '), {
      ram: new Map([['ram', '/dev/shm/b']]),
      machineType: 'pc-q35-7.2',
      tapNameOf: String,
      overlays,
      cwd: '/vm',
    });

  it('gives the new QEMU RAM of its own, and disks on overlays, which are its images afterwards', () => {
    const { argv, known, refused } = over('-drive file=a.raw,format=raw,id=vda,if=none');
    expect(refused).toEqual([]);
    expect(argv).toContain('file.filename=/vm/a.raw.over,format=qcow2,id=vda,if=none');
    expect(known).toContain('file=a.raw,format=raw,id=vda,if=none');
    expect(argv.join(' ')).toContain('mem-path=/dev/shm/b');
  });

  it('refuses a disk that it does not find there', () => {
    expect(over('-drive file=b.raw,format=raw').refused).toMatchObject([{ what: '/vm/a.raw' }]);
  });
});
