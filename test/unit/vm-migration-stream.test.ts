/** The prefix of a migration stream, on streams that are built here field by field. */

import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { UnsupportedHostError } from '../../lib/errors.js';
import { checkDeviceStateHeader, parseMigrationPrefix } from '../../lib/vm/migration-stream.js';

const u8 = (value: number): Buffer => Buffer.from([value]);
const u32 = (value: number): Buffer => {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(value);
  return bytes;
};
const u64 = (value: number): Buffer => {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64BE(BigInt(value));
  return bytes;
};
const text = (value: string): Buffer => Buffer.concat([u8(value.length), Buffer.from(value)]);
const join = (...parts: Buffer[]): Buffer => Buffer.concat(parts);

const PAGE = 4096;
const RAM = 3;
const ZERO_FLAG = 0x02;
const MEM_SIZE_FLAG = 0x04;
const PAGE_FLAG = 0x08;
const EOS_FLAG = 0x10;
const CONTINUE_FLAG = 0x20;

const header = join(u32(0x5145564d), u32(3));
const subsection = (name: string, content: Buffer): Buffer => join(u8(5), text(name), u32(1), content);
const capabilities = (...names: string[]): Buffer =>
  subsection('configuration/capabilities', join(u32(names.length), ...names.map(text)));
const configuration = (...subsections: Buffer[]): Buffer =>
  join(u8(7), u32(10), Buffer.from('pc-q35-7.2'), ...subsections);
const ignoreShared = configuration(capabilities('x-ignore-shared'));

const footer = (id: number): Buffer => join(u8(0x7e), u32(id));
const begin = (id: number, name: string, version = 4): Buffer =>
  join(u8(1), u32(id), text(name), u32(0), u32(version));
const blocks = (...list: readonly [string, number][]): Buffer =>
  join(
    u64(list.reduce((sum, [, bytes]) => sum + bytes, 0) + MEM_SIZE_FLAG),
    ...list.map(([name, bytes]) => join(text(name), u64(bytes), u64(0x1000))),
  );
const eos = u64(EOS_FLAG);
const page = (address: number, block?: string): Buffer =>
  join(
    u64(address + PAGE_FLAG + (block === undefined ? CONTINUE_FLAG : 0)),
    block === undefined ? Buffer.alloc(0) : text(block),
    Buffer.alloc(PAGE, 0x7e),
  );
const zero = (address: number, block?: string): Buffer =>
  join(
    u64(address + ZERO_FLAG + (block === undefined ? CONTINUE_FLAG : 0)),
    block === undefined ? Buffer.alloc(0) : text(block),
    u8(0),
  );

const list: readonly [string, number][] = [
  ['ram', 64 << 20],
  ['pc.bios', 2 * PAGE],
  ['/rom@etc/acpi/rsdp', PAGE],
];

const ramSections = (footers: boolean): Buffer => {
  const end = footers ? footer(RAM) : Buffer.alloc(0);
  return join(
    join(begin(RAM, 'ram'), blocks(...list), eos, end),
    join(u8(2), u32(RAM), page(0, 'pc.bios'), zero(PAGE), eos, end),
    join(u8(3), u32(RAM), zero(0, '/rom@etc/acpi/rsdp'), eos, end),
  );
};
const devices = join(u8(4), u32(0), text('timer'), u32(0), u32(2), Buffer.alloc(24), u8(0));

describe('01 streams of QEMU 7.2 to 10', () => {
  for (const footers of [true, false]) {
    test(`${footers ? 'with' : 'without'} section footers`, () => {
      const prefix = join(header, ignoreShared, ramSections(footers));
      expect(parseMigrationPrefix(join(prefix, devices))).toEqual({
        bytes: prefix.length,
        machineType: 'pc-q35-7.2',
        capabilities: ['x-ignore-shared'],
        blocks: [
          { id: 'ram', usedBytes: 64 << 20, pages: 0 },
          { id: 'pc.bios', usedBytes: 2 * PAGE, pages: 2 },
          { id: '/rom@etc/acpi/rsdp', usedBytes: PAGE, pages: 1 },
        ],
      });
    });
  }

  test('with all subsections of the configuration', () => {
    const prefix = join(
      header,
      configuration(
        subsection('configuration/target-page-bits', u32(12)),
        capabilities('validate-uuid', 'x-ignore-shared'),
        subsection('configuration/uuid', Buffer.alloc(16)),
      ),
      ramSections(true),
    );
    expect(parseMigrationPrefix(join(prefix, devices)).bytes).toBe(prefix.length);
  });

  test('CONTINUE reaches over a section boundary', () => {
    const prefix = join(
      header,
      ignoreShared,
      join(begin(RAM, 'ram'), blocks(...list), eos),
      join(u8(2), u32(RAM), page(0, 'pc.bios'), eos),
      join(u8(3), u32(RAM), page(PAGE), eos),
    );
    expect(parseMigrationPrefix(join(prefix, devices)).blocks[1]).toMatchObject({ pages: 2 });
  });

  test('a buffer that is a view into a larger one', () => {
    const stream = join(header, ignoreShared, ramSections(true), devices);
    const view = join(Buffer.alloc(100), stream).subarray(100);
    expect(parseMigrationPrefix(view)).toEqual(parseMigrationPrefix(stream));
  });
});

describe('02 what is refused', () => {
  const start = join(header, ignoreShared);
  const opened = join(start, begin(RAM, 'ram'), blocks(...list));
  const cases: readonly (readonly [string, Buffer, RegExp])[] = [
    ['another magic', join(u32(0x12345678), u32(3)), /byte 0: magic 0x12345678/],
    ['another version', join(u32(0x5145564d), u32(2)), /byte 4: stream version 2/],
    ['no configuration', join(header, ramSections(true)), /no configuration section/],
    ['no capabilities', join(header, configuration(), ramSections(true)), /without x-ignore-shared/],
    [
      'an unknown subsection',
      join(header, configuration(subsection('configuration/x', u8(0)))),
      /configuration\/x/,
    ],
    ['another iterative section', join(start, begin(1, 'dirty-bitmap', 1)), /'dirty-bitmap' is not known/],
    ['another version of ram', join(start, begin(RAM, 'ram', 5)), /ram section of version 5/],
    ['two ram sections', join(start, begin(RAM, 'ram'), eos, begin(RAM, 'ram')), /second ram section/],
    ['a command', join(start, u8(8)), /a migration command/],
    ['an unknown section', join(start, u8(9)), /section type 0x9/],
    ['devices before ram', join(start, devices), /precedes the end of the ram section/],
    ['no devices', join(start, ramSections(true), u8(0)), /ends before its first device section/],
    ['a part of another section', join(opened, eos, u8(2), u32(9)), /section 9 continues/],
    ["another section's footer", join(opened, eos, footer(9)), /footer of 9/],
    ['xbzrle pages', join(opened, u64(0x40)), /RAM flags 0x40/],
    ['multifd', join(opened, u64(0x200)), /RAM flags 0x200/],
    ['flags that contradict', join(opened, u64(PAGE_FLAG + ZERO_FLAG)), /do not go together/],
    ['a page of no block', join(opened, page(0, 'vga.vram')), /'vga.vram', which is not listed/],
    ['CONTINUE of nothing', join(opened, page(0)), /which is not listed/],
    ['a page beyond its block', join(opened, page(2 * PAGE, 'pc.bios')), /beyond the RAM block 'pc.bios'/],
    [
      'a block list that does not add up',
      join(start, begin(RAM, 'ram'), u64(PAGE + 4), text('a'), u64(2 * PAGE), u64(0)),
      /add up at 'a'/,
    ],
  ];
  for (const [what, stream, message] of cases) {
    test(what, () => {
      expect(() => parseMigrationPrefix(stream)).toThrow(message);
      expect(() => parseMigrationPrefix(stream)).toThrow(UnsupportedHostError);
    });
  }

  test('a stream cut anywhere before the devices, at every byte', () => {
    const small = join(
      start,
      begin(RAM, 'ram'),
      blocks(...list),
      eos,
      u8(3),
      u32(RAM),
      zero(0, 'pc.bios'),
      eos,
    );
    expect(parseMigrationPrefix(join(small, devices)).bytes).toBe(small.length);
    for (let length = 0; length <= small.length; length++) {
      expect(() => parseMigrationPrefix(small.subarray(0, length))).toThrow(UnsupportedHostError);
    }
  });

  test('any bytes at all: an answer or an UnsupportedHostError, nothing else', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 200 }), fc.constantFrom(header, start, opened), (tail, head) => {
        try {
          parseMigrationPrefix(join(head, Buffer.from(tail)));
        } catch (error) {
          expect(error).toBeInstanceOf(UnsupportedHostError);
        }
      }),
    );
  });
});

describe('03 the header of a device state', () => {
  test('is 8 bytes', () => {
    expect(checkDeviceStateHeader(join(header, devices))).toBe(8);
  });

  test('is checked', () => {
    expect(() => checkDeviceStateHeader(u32(0x5145564d))).toThrow(/ends within the version/);
    expect(() => checkDeviceStateHeader(Buffer.alloc(8))).toThrow(/instead of QEVM/);
  });
});
