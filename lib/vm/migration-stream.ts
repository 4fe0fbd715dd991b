/**
 * Where the device sections begin in a migration stream that was made with
 * x-ignore-shared and the VM stopped.
 *
 *   ┌────────┬───────────────┬──────────────────────────────┬──────────────┬─────┐
 *   │ header │ configuration │ ram: START … PART … END      │ FULL sections│ EOF │
 *   │ 8 bytes│ type, caps    │ block list, ROM pages        │ the devices  │     │
 *   └────────┴───────────────┴──────────────────────────────┴──────────────┴─────┘
 *   ◄──────────────── the prefix ──────────────────────────►
 *
 * The prefix plus the body of a xen-save-devices-state file (which is header,
 * FULL sections, EOF) is a complete stream that a standby loads: the composite
 * stream. The prefix brings what the device state lacks, the blocks of RAM that
 * are not shared: ROMs and ACPI tables. Without it the guest hangs at its next
 * reboot.
 *
 * Layout: qemu_savevm_state_setup() and vmstate_configuration in
 * migration/savevm.c, ram_save_setup() and ram_save_page() in migration/ram.c.
 * All integers are big-endian. What is not known here is refused, not guessed.
 */

import { UnsupportedHostError } from '../errors.js';

/** Length of the header of both kinds of stream: magic and version. */
export const xenSaveHeaderBytes = 8;

const MAGIC = 0x5145564d; // 'QEVM'
const STREAM_VERSION = 3;

const SECTION = { eof: 0, start: 1, part: 2, end: 3, full: 4, subsection: 5, configuration: 7, command: 8 };
const FOOTER = 0x7e;

// migration/ram.c, RAM_SAVE_FLAG_*: the low bits of a page address.
const RAM_FLAG = { zero: 0x02, memSize: 0x04, page: 0x08, eos: 0x10, continue: 0x20 };
const RAM_FLAGS_KNOWN = 0x3e;
/** Before version 4 (QEMU 0.15) the section looked different. */
const RAM_SECTION_VERSION = 4;

export interface StreamRamBlock {
  readonly id: string;
  readonly usedBytes: number;
  /** Pages of the block that are in the stream; 0 for shared blocks, which are left out. */
  readonly pages: number;
}

export interface MigrationPrefix {
  /** Length of the prefix: the offset of the first full device section. */
  readonly bytes: number;
  /** Machine type with its version, e.g. pc-q35-7.2. */
  readonly machineType: string;
  readonly capabilities: readonly string[];
  readonly blocks: readonly StreamRamBlock[];
}

/**
 * Finds the prefix. `stream` may end anywhere after it.
 *
 * @param pageSize the target's page size, bytes
 * @throws UnsupportedHostError naming the offset and what was found there
 */
export const parseMigrationPrefix = (stream: Uint8Array, pageSize = 4096): MigrationPrefix => {
  const reader = new StreamReader(stream);
  readHeader(reader);
  const { machineType, capabilities } = readConfiguration(reader);
  if (!capabilities.includes('x-ignore-shared')) {
    throw reader.error('the stream was made without x-ignore-shared: it would hold all of guest RAM');
  }
  const ram = new RamSection(pageSize);
  let ramId: number | undefined;
  let ramEnded = false;
  for (;;) {
    const at = reader.offset;
    const type = reader.u8('a section type');
    if (type === SECTION.full) {
      if (!ramEnded) throw reader.error('a device section precedes the end of the ram section', at);
      return { bytes: at, machineType, capabilities, blocks: ram.blocks() };
    }
    if (type !== SECTION.start && type !== SECTION.part && type !== SECTION.end) {
      throw reader.error(unexpectedSection(type), at);
    }
    const id = reader.u32('a section id');
    if (type === SECTION.start) {
      const name = reader.text('a section name');
      reader.skip(4, 'an instance id');
      const version = reader.u32('a section version');
      if (name !== 'ram') throw reader.error(`the iterative section '${name}' is not known`, at);
      if (ramId !== undefined) throw reader.error('a second ram section begins', at);
      if (version !== RAM_SECTION_VERSION) throw reader.error(`ram section of version ${version}`, at);
      ramId = id;
    } else if (id !== ramId || ramEnded) {
      throw reader.error(`section ${id} continues but did not begin`, at);
    }
    ram.read(reader);
    if (reader.peek() === FOOTER) {
      reader.skip(1, 'a section footer');
      const footerId = reader.u32('a section footer');
      if (footerId !== id) throw reader.error(`section ${id} ends with the footer of ${footerId}`);
    }
    ramEnded = type === SECTION.end;
  }
};

/** Checks that a xen-save-devices-state file begins as one, and returns where its sections begin. */
export const checkDeviceStateHeader = (state: Uint8Array): number => {
  readHeader(new StreamReader(state));
  return xenSaveHeaderBytes;
};

const readHeader = (reader: StreamReader): void => {
  const magic = reader.u32('the magic');
  if (magic !== MAGIC) throw reader.error(`magic 0x${magic.toString(16)} instead of QEVM`, 0);
  const version = reader.u32('the version');
  if (version !== STREAM_VERSION) throw reader.error(`stream version ${version}, not ${STREAM_VERSION}`, 4);
};

const readConfiguration = (reader: StreamReader): { machineType: string; capabilities: string[] } => {
  const at = reader.offset;
  const type = reader.u8('the configuration section');
  if (type !== SECTION.configuration) {
    throw reader.error(`no configuration section but type ${type} (a machine type older than pc-2.4?)`, at);
  }
  const machineType = reader.latin1(reader.u32('the machine type'), 'the machine type');
  const capabilities: string[] = [];
  while (reader.peek() === SECTION.subsection) {
    reader.skip(1, 'a subsection');
    const name = reader.text('a subsection name');
    reader.skip(4, 'a subsection version');
    switch (name) {
      case 'configuration/capabilities': {
        const count = reader.u32('the number of capabilities');
        for (let index = 0; index < count; index++) capabilities.push(reader.text('a capability'));
        break;
      }
      case 'configuration/target-page-bits':
        reader.skip(4, name);
        break;
      case 'configuration/uuid':
        reader.skip(16, name);
        break;
      default:
        throw reader.error(`the subsection '${name}' is not known`);
    }
  }
  return { machineType, capabilities };
};

const unexpectedSection = (type: number): string => {
  if (type === SECTION.eof) return 'the stream ends before its first device section';
  if (type === SECTION.command) {
    return 'a migration command (is the capability return-path or postcopy-ram switched on?)';
  }
  return `section type 0x${type.toString(16)} is not known`;
};

/** The contents of ram's START, PART and END sections, which look alike. */
class RamSection {
  readonly #pageSize: number;
  readonly #used = new Map<string, number>();
  readonly #pages = new Map<string, number>();
  /** CONTINUE means: of the same block as the page before. It reaches across sections. */
  #block: string | undefined;

  constructor(pageSize: number) {
    this.#pageSize = pageSize;
  }

  blocks(): StreamRamBlock[] {
    return [...this.#used].map(([id, usedBytes]) => ({
      id,
      usedBytes,
      pages: this.#pages.get(id) ?? 0,
    }));
  }

  read(reader: StreamReader): void {
    for (;;) {
      const at = reader.offset;
      const word = reader.u64('a page address');
      const flags = Number(word % BigInt(this.#pageSize));
      const address = word - BigInt(flags);
      if ((flags & ~RAM_FLAGS_KNOWN) !== 0) {
        throw reader.error(
          `RAM flags 0x${flags.toString(16)} (xbzrle, compress, multifd and mapped-ram must be off)`,
          at,
        );
      }
      if (flags === RAM_FLAG.eos) return;
      if (flags === RAM_FLAG.memSize) {
        this.#readBlockList(reader, Number(address));
        continue;
      }
      const kind = flags & ~RAM_FLAG.continue;
      if (kind !== RAM_FLAG.zero && kind !== RAM_FLAG.page) {
        throw reader.error(`RAM flags 0x${flags.toString(16)} do not go together`, at);
      }
      if ((flags & RAM_FLAG.continue) === 0) this.#block = reader.text('a RAM block name');
      const used = this.#block === undefined ? undefined : this.#used.get(this.#block);
      if (this.#block === undefined || used === undefined) {
        throw reader.error(`a page of the RAM block '${this.#block ?? ''}', which is not listed`, at);
      }
      if (address >= BigInt(used)) throw reader.error(`a page beyond the RAM block '${this.#block}'`, at);
      reader.skip(kind === RAM_FLAG.page ? this.#pageSize : 1, `a page of ${this.#block}`);
      this.#pages.set(this.#block, (this.#pages.get(this.#block) ?? 0) + 1);
    }
  }

  /** ram_save_setup(): name, used length, and, with x-ignore-shared, the guest address. */
  #readBlockList(reader: StreamReader, totalBytes: number): void {
    let left = totalBytes;
    while (left > 0) {
      const id = reader.text('a RAM block name');
      const usedBytes = Number(reader.u64(`the length of ${id}`));
      reader.skip(8, `the address of ${id}`);
      if (usedBytes > left || this.#used.has(id)) {
        throw reader.error(`the list of RAM blocks does not add up at '${id}'`);
      }
      this.#used.set(id, usedBytes);
      left -= usedBytes;
    }
  }
}

class StreamReader {
  readonly #bytes: Uint8Array;
  readonly #view: DataView;
  offset = 0;

  constructor(bytes: Uint8Array) {
    this.#bytes = bytes;
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  }

  u8(what: string): number {
    return this.#view.getUint8(this.#take(1, what));
  }

  u32(what: string): number {
    return this.#view.getUint32(this.#take(4, what));
  }

  u64(what: string): bigint {
    return this.#view.getBigUint64(this.#take(8, what));
  }

  /** A string with a length byte before it. */
  text(what: string): string {
    return this.latin1(this.u8(what), what);
  }

  latin1(length: number, what: string): string {
    const at = this.#take(length, what);
    return Buffer.from(this.#bytes.buffer, this.#bytes.byteOffset + at, length).toString('latin1');
  }

  skip(length: number, what: string): void {
    this.#take(length, what);
  }

  /** The next byte, or undefined at the end. */
  peek(): number | undefined {
    return this.#bytes[this.offset];
  }

  error(message: string, offset = this.offset): UnsupportedHostError {
    return new UnsupportedHostError(`QEMU's migration stream, byte ${offset}: ${message}`, {
      cure: 'Use a QEMU from 7.2 to 10.0 with the default migration capabilities.',
      details: { offset },
    });
  }

  #take(length: number, what: string): number {
    const at = this.offset;
    if (length > this.#bytes.byteLength - at) {
      throw this.error(`the stream ends within ${what} (${this.#bytes.byteLength} bytes in all)`);
    }
    this.offset = at + length;
    return at;
  }
}
