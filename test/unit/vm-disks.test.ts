import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { ConfigError } from '../../lib/errors.js';
import { findDisks, moveDiskSockets, wireDisks } from '../../lib/vm/disks.js';

const nbd = (socket: string, prefix = 'file.'): string =>
  `${prefix}driver=nbd,${prefix}server.type=unix,${prefix}server.path=${socket},${prefix}reconnect-delay=86400`;

const wired = (...argv: string[]): string[] => {
  const { files, refused } = findDisks(argv);
  expect(refused).toEqual([]);
  return wireDisks(argv, new Map(files.map(({ id }) => [id, `/run/${id}.sock`])));
};

describe('disks on the command line', () => {
  it.each([
    [
      'a drive',
      ['-drive', 'file=/srv/a.raw,format=raw,if=none,id=vda'],
      [{ id: 'vda', image: '/srv/a.raw', format: 'raw' }],
      ['-drive', `${nbd('/run/vda.sock')},format=raw,if=none,id=vda`],
    ],
    [
      'what belongs to the file only, and what does not',
      [
        '-drive',
        'if=virtio,file=a,,b.raw,cache=none,aio=native,format=raw,discard=unmap,file.locking=off,werror=stop',
      ],
      [{ id: 'disk0', image: 'a,b.raw', format: 'raw' }],
      ['-drive', `if=virtio,${nbd('/run/disk0.sock')},cache=none,format=raw,discard=unmap,werror=stop`],
    ],
    [
      'a cache in two words',
      ['-drive', 'file=a.raw,format=raw,cache=none,cache.no-flush=on,id=a'],
      [{ id: 'a', image: 'a.raw', format: 'raw' }],
      ['-drive', `${nbd('/run/a.sock')},format=raw,cache=none,cache.no-flush=on,id=a`],
    ],
    [
      'a format that QEMU has to guess',
      ['-drive', 'file=a.img,id=x'],
      [{ id: 'x', image: 'a.img', format: undefined }],
      ['-drive', `${nbd('/run/x.sock')},id=x`],
    ],
    [
      'a block device, by keys of its own',
      ['-drive', 'driver=raw,file.driver=host_device,file.filename=/dev/vg0/a,file.node-name=f,id=x'],
      [{ id: 'x', image: '/dev/vg0/a', format: 'raw' }],
      ['-drive', `driver=raw,${nbd('/run/x.sock')},file.node-name=f,id=x`],
    ],
    [
      'a protocol in the name',
      ['-drive', 'file=host_device:/dev/sdb,format=raw,id=x'],
      [{ id: 'x', image: '/dev/sdb', format: 'raw' }],
      ['-drive', `${nbd('/run/x.sock')},format=raw,id=x`],
    ],
    [
      'a drive without a format node',
      ['-drive', 'driver=file,filename=/srv/a.raw,if=none,id=x'],
      [{ id: 'x', image: '/srv/a.raw', format: 'raw' }],
      ['-drive', `${nbd('/run/x.sock', '')},if=none,id=x`],
    ],
    [
      'one blockdev',
      [
        '-blockdev',
        'raw,node-name=d0,file.driver=file,file.filename=/srv/a.raw,file.aio=native,discard=unmap',
      ],
      [{ id: 'd0', image: '/srv/a.raw', format: 'raw' }],
      ['-blockdev', `driver=raw,node-name=d0,${nbd('/run/d0.sock')},discard=unmap`],
    ],
    [
      'two blockdevs, one made of the other',
      [
        ...['-blockdev', 'driver=file,node-name=f0,filename=/srv/a.raw,discard=unmap,cache.direct=on'],
        ...['-blockdev', 'driver=raw,node-name=d0,file=f0'],
      ],
      [{ id: 'd0', image: '/srv/a.raw', format: 'raw' }],
      [
        ...['-blockdev', `${nbd('/run/d0.sock', '')},node-name=f0,discard=unmap,cache.direct=on`],
        ...['-blockdev', 'driver=raw,node-name=d0,file=f0'],
      ],
    ],
    [
      'a blockdev in JSON',
      [
        '-blockdev',
        '{"driver":"raw","node-name":"d0","file":{"driver":"file","filename":"/srv/a.raw","cache":{"direct":true}}}',
      ],
      [{ id: 'd0', image: '/srv/a.raw', format: 'raw' }],
      [
        '-blockdev',
        '{"driver":"raw","node-name":"d0","file":{"driver":"nbd","server":{"type":"unix","path":"/run/d0.sock"},"reconnect-delay":86400,"cache":{"direct":true}}}',
      ],
    ],
    [
      'options of old',
      ['-hda', 'a.img', '-hdb', 'b.img', '-fda', 'f.img', '-m', '1G'],
      ['a', 'b', 'f'].map((name, index) => ({ id: `disk${index}`, image: `${name}.img`, format: undefined })),
      [
        ...['-drive', `index=0,media=disk,${nbd('/run/disk0.sock')}`],
        ...['-drive', `index=1,media=disk,${nbd('/run/disk1.sock')}`],
        ...['-drive', `if=floppy,index=0,${nbd('/run/disk2.sock')}`],
        ...['-m', '1G'],
      ],
    ],
    [
      'a bare image',
      ['disk.img'],
      [{ id: 'disk0', image: 'disk.img', format: undefined }],
      ['-drive', `index=0,media=disk,${nbd('/run/disk0.sock')}`],
    ],
    [
      'names that cannot be ids, or are taken',
      [
        ...['-drive', 'file=a,format=raw,id=disk1'],
        ...['-drive', 'file=b,format=raw,if=virtio'],
        ...['-drive', `file=c,format=raw,id=${'x'.repeat(65)}`],
      ],
      [
        { id: 'disk1', image: 'a', format: 'raw' },
        { id: 'disk2', image: 'b', format: 'raw' },
        { id: 'disk3', image: 'c', format: 'raw' },
      ],
      [
        ...['-drive', `${nbd('/run/disk1.sock')},format=raw,id=disk1`],
        ...['-drive', `${nbd('/run/disk2.sock')},format=raw,if=virtio`],
        ...['-drive', `${nbd('/run/disk3.sock')},format=raw,id=${'x'.repeat(65)}`],
      ],
    ],
  ])('finds and wires %s', (_, argv, files, expected) => {
    expect(findDisks(argv)).toMatchObject({ files, sockets: [], refused: [] });
    expect(wired(...argv)).toEqual(expected);
    expect(findDisks(argv).files.map(({ unmap }) => unmap)).toEqual(
      files.map(() => argv.some((word) => word.includes('discard=unmap'))),
    );
  });

  it.each([
    ['-cdrom', 'x.iso'],
    ['-drive', 'file=x.iso,media=cdrom'],
    ['-drive', 'file=x.qcow2,readonly=on,id=a'],
    ['-drive', 'file=x.qcow2,format=qcow2,read-only=on'],
    ['-drive', 'if=ide,index=1,media=cdrom'],
    ['-drive', 'if=none,id=empty'],
    ['-blockdev', 'driver=file,node-name=f,filename=x,read-only=on'],
    ['-blockdev', 'driver=file,node-name=f,filename=x', '-blockdev', 'driver=raw,file=f,read-only=on'],
    ['-blockdev', '{"driver":"qcow2","read-only":true,"file":{"driver":"file","filename":"x"}}'],
  ])('leaves alone what the guest cannot write: %s %s', (...argv) => {
    expect(findDisks(argv)).toEqual({ files: [], sockets: [], refused: [] });
    expect(wired(...argv)).toEqual(argv);
  });

  it.each([
    [['-drive', 'file=x,format=qcow2,id=a'], /format is qcow2/, /qemu-img convert -O raw/],
    [['-drive', 'file=x,driver=vmdk'], /format is vmdk/, /qemu-img convert/],
    [
      ['-blockdev', 'driver=file,node-name=f,filename=x', '-blockdev', 'driver=qcow2,node-name=q,file=f'],
      /format is qcow2/,
      /qemu-img convert/,
    ],
    [['-blockdev', 'driver=luks,node-name=l,file.driver=file,file.filename=x'], /format is luks/, /raw/],
    [['-drive', 'file=x,format=raw,snapshot=on'], /-snapshot/, /without it/],
    [['-snapshot', '-hda', 'x'], /-snapshot/, /without it/],
    [['-drive', 'if=pflash,format=raw,file=vars.fd'], /flash/, /SeaBIOS/],
    [['-pflash', 'vars.fd'], /flash/, /SeaBIOS/],
    [['-drive', 'file=rbd:pool/x,format=raw'], /driver rbd/, /raw image/],
    [['-drive', 'file=nbd://host/x,format=raw'], /driver nbd/, /raw image/],
    [['-blockdev', 'driver=null-co,node-name=n,size=1M'], /driver null-co/, /raw image/],
    [
      ['-blockdev', 'driver=nbd,node-name=n,server.type=inet,server.host=h,server.port=1'],
      /NBD server/,
      /raw image/,
    ],
  ])('refuses %j, with its cure', (argv, reason, cure) => {
    const { files, refused } = findDisks(argv);
    expect(files).toEqual([]);
    expect(refused).toEqual([
      {
        what: expect.stringMatching(/^disk /),
        reason: expect.stringMatching(reason),
        cure: expect.stringMatching(cure),
      },
    ]);
  });

  it('tells disks that are on a server already', () => {
    const argv = wired(
      '-drive',
      'file=a,format=raw,id=vda',
      '-blockdev',
      'driver=file,node-name=d,filename=b',
    );
    expect(findDisks(argv)).toEqual({ files: [], sockets: ['/run/vda.sock', '/run/d.sock'], refused: [] });
  });

  it('moves the sockets for a standby, of disks launched on a server and of those moved there', () => {
    const argv = [
      ...wired('-drive', 'file=a,format=raw,id=vda'),
      ...['-drive', 'file=b,format=raw,id=vdb', '-cdrom', 'c.iso'],
    ];
    const earlier = new Map([
      ['vda', '/run/vda.sock'],
      ['vdb', '/run/moved/vdb.sock'],
    ]);
    const portable = wireDisks(
      argv,
      new Map([
        ['vda', 'p:vda'],
        ['vdb', 'p:vdb'],
      ]),
      earlier,
    );
    const moved = moveDiskSockets(
      portable,
      new Map([
        ['p:vda', '/s/vda.sock'],
        ['p:vdb', '/s/vdb.sock'],
      ]),
    );
    expect(moved).toEqual([
      ...['-drive', `${nbd('/s/vda.sock')},format=raw,id=vda`],
      ...['-drive', `${nbd('/s/vdb.sock')},format=raw,id=vdb`, '-cdrom', 'c.iso'],
    ]);
    expect(() => moveDiskSockets(argv, new Map([['p:vdc', '/s/vdc.sock']]))).toThrow(ConfigError);
    expect(() => wireDisks(argv, new Map([['vdc', '/run/vdc.sock']]))).toThrow(ConfigError);
  });
});

describe('properties', () => {
  const path = fc.stringMatching(/^\/[a-z,=. ]{1,12}[a-z]$/);
  const option = fc.oneof(
    fc
      .record({
        path,
        id: fc.stringMatching(/^[a-z][a-z0-9]{0,5}$/),
        tail: fc.constantFrom('', ',cache=none', ',aio=native'),
      })
      .map(({ path, id, tail }) => [
        '-drive',
        `file=${path.replaceAll(',', ',,')},format=raw,id=${id}${tail}`,
      ]),
    path.map((path) => ['-hda', path]),
    path.map((filename) => [
      '-blockdev',
      JSON.stringify({ driver: 'raw', 'node-name': 'n', file: { driver: 'file', filename } }),
    ]),
    fc.constantFrom(['-m', '1G'], ['-device', 'virtio-blk-pci,drive=a'], ['-cdrom', 'x.iso'], ['-S']),
  );

  it('rewriting twice is rewriting once, and nothing but disks changes', () => {
    fc.assert(
      fc.property(fc.array(option, { maxLength: 6 }), (options) => {
        const argv = options.flat();
        const { files } = findDisks(argv);
        const ids = files.map(({ id }) => id);
        expect(new Set(ids).size).toBe(ids.length);
        const sockets = new Map(ids.map((id) => [id, `/run/${id}.sock`]));
        const once = wireDisks(argv, sockets);
        expect(wireDisks(once, sockets)).toEqual(once);
        expect(findDisks(once)).toEqual({ files: [], sockets: [...sockets.values()], refused: [] });
        const elsewhere = new Map(ids.map((id) => [`/run/${id}.sock`, `/other/${id}.sock`]));
        const back = new Map([...elsewhere].map(([from, to]) => [to, from]));
        expect(moveDiskSockets(moveDiskSockets(once, elsewhere), back)).toEqual(once);
        expect(moveDiskSockets(argv, new Map())).toEqual(argv);
      }),
    );
  });
});
