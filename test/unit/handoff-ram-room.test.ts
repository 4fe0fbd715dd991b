/** RAM a second time: refused before anything is made where it would not fit. */
import { describe, expect, it } from 'vitest';
import { NoSpaceError } from '../../lib/errors.js';
import { assertRoom } from '../../lib/handoff/ram-room.js';

const MIB = 1 << 20;
const room = (heldMib: number, freeMib: number) => () =>
  assertRoom({
    dir: '/dev/shm',
    ramBytes: 512 * MIB,
    heldBytes: heldMib * MIB,
    freeBytes: freeMib * MIB,
  });

describe('room for RAM a second time', () => {
  it('is that of all RAM where the VM has touched all of its own', () => {
    expect(room(512, 512)).not.toThrow();
    expect(room(512, 511)).toThrow(NoSpaceError);
  });

  it('counts what the VM itself may still touch while it runs on', () => {
    expect(room(100, 512 + 412)).not.toThrow();
    expect(room(100, 512 + 411)).toThrow(
      /needs the VM's RAM a second time: 968884224 bytes in \/dev\/shm, which has 967835648; nothing was changed/,
    );
  });

  it('asks for no more where the file holds more than RAM', () => {
    expect(room(600, 512)).not.toThrow();
  });

  it('is there where the file system has no limit', () => {
    expect(room(0, Number.POSITIVE_INFINITY)).not.toThrow();
  });
});
