/**
 * Disks in the simulation: the primary's, with its map and its log, and the
 * replica behind the backup's store. Both outlive the daemons. A disk has few
 * blocks; before each packet the guest writes the packet's number to one of
 * them, so the packets sent say what must be on the disk.
 */
import type { World } from './world.js';

const BLOCKS = 12;
export const NEVER_SYNCED = '0';

const blockOf = (packet: number): number => (packet * 5) % BLOCKS;

/** Block by block the newest packet in it, when `sent` are sent. */
export const contentOf = (sent: number): readonly number[] => {
  const content = new Array<number>(BLOCKS).fill(0);
  for (let packet = Math.max(1, sent - BLOCKS + 1); packet <= sent; packet += 1) {
    content[blockOf(packet)] = packet;
  }
  return content;
};

export type DiskMessage =
  /** From the backup, first of all: what its image is a copy of, and what it has changed since. */
  | { readonly type: 'state'; readonly syncId: string; readonly marked: readonly number[] }
  | { readonly type: 'base'; readonly block: number; readonly packet: number }
  | { readonly type: 'log'; readonly packet: number }
  | { readonly type: 'synced'; readonly syncId: string }
  /** The log up to this packet belongs to the epoch; more may have come already. */
  | { readonly type: 'boundary'; readonly epoch: number; readonly packet: number };

/** Image, map and log of the disk server at the primary. */
export class PrimaryDisk {
  readonly content = new Array<number>(BLOCKS).fill(0);
  syncId = NEVER_SYNCED;
  logging = false;
  log: number[] = [];
  #newer = new Set<number>();
  #older = new Set<number>();

  write(packet: number): void {
    const block = blockOf(packet);
    this.#newer.add(block);
    this.content[block] = packet;
    if (this.logging) this.log.push(packet);
  }

  get marked(): readonly number[] {
    return [...new Set([...this.#newer, ...this.#older])];
  }

  rotate(): void {
    this.#older = this.#newer;
    this.#newer = new Set();
  }

  logs(on: boolean): void {
    this.logging = on;
    this.log = [];
  }

  allBlocks(): readonly number[] {
    return this.content.map((_packet, block) => block);
  }
}

/** The replica: its image, and the session that has a checkpoint in it. */
export class ReplicaDisk {
  readonly #world: World;
  #content = new Array<number>(BLOCKS).fill(0);
  syncId = NEVER_SYNCED;
  /** Whose checkpoint the image is: what comes of another session stays aside. */
  holder: object | undefined;
  /** The host's disk is full, or fails. */
  isFaulty = false;

  constructor(world: World) {
    this.#world = world;
  }

  /** The checkpoint is void, or the daemon that had its memory is gone. */
  letGo(holder: object): void {
    if (this.holder === holder) this.holder = undefined;
  }

  /** What a session writes before its first commit: to the image, if there is nothing to lose. */
  write(session: DiskSession, packet: number, block: number): void {
    if (this.holder === undefined) this.#content[block] = packet;
    else session.aside.set(block, packet);
  }

  commit(session: DiskSession, holder: object, sent: number): void {
    if (this.holder !== holder) {
      for (const [block, packet] of session.aside) this.#content[block] = packet;
      session.aside.clear();
      this.syncId = session.syncId;
      this.holder = holder;
    }
    for (const packet of session.journal.splice(0, session.boundary)) this.#content[blockOf(packet)] = packet;
    session.boundary = 0;
    this.check(sent, 'commit');
  }

  /** What is in the image is the guest's disk as of the checkpoint, block for block. */
  check(sent: number, when: string): void {
    const expected = contentOf(sent);
    const wrong = this.#content.findIndex((packet, block) => packet !== expected[block]);
    if (wrong !== -1) {
      this.#world.violated(
        `disk at a ${when} of ${sent}: block ${wrong} has ${this.#content[wrong]}, not ${expected[wrong]}`,
      );
    }
  }
}

/** What a session of the backup has received for the disk. */
export class DiskSession {
  readonly aside = new Map<number, number>();
  /** From `synced` on: writes that wait for their commit, and how many of them are the next epoch's. */
  journal: number[] = [];
  boundary = 0;
  boundaryEpoch = 0;
  syncId = NEVER_SYNCED;
  #isSynced = false;

  receive(disk: ReplicaDisk, message: DiskMessage): void {
    switch (message.type) {
      case 'base':
        disk.write(this, message.packet, message.block);
        return;
      case 'log':
        if (this.#isSynced) this.journal.push(message.packet);
        else disk.write(this, message.packet, blockOf(message.packet));
        return;
      case 'synced':
        this.syncId = message.syncId;
        this.#isSynced = true;
        return;
      case 'boundary':
        this.boundary = this.journal.filter((packet) => packet <= message.packet).length;
        this.boundaryEpoch = message.epoch;
        return;
      case 'state':
        return; // goes the other way
    }
  }
}
