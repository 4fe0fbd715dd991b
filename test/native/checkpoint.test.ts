/** Checkpoints of a small QEMU's RAM: layers, their chain, merges and damage, against what memory was. */
import { copyFileSync, mkdtempSync, readFileSync, rmSync, statSync } from 'node:fs';
import { open } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { LayerFiles, NativeCheckpointer } from '../../lib/checkpoint/binding.js';
import { native } from '../../lib/native.js';
import { pageBytes, SmallQemu } from './primary-qemu.js';

const RAM_MIB = 16;
const RAM_BYTES = RAM_MIB << 20;

let dir: string;
let qemu: SmallQemu;
beforeAll(async () => {
  dir = mkdtempSync(join(tmpdir(), 'holdfast-checkpoint-'));
  qemu = await SmallQemu.start(RAM_MIB);
  await qemu.qmp('stop');
});
afterAll(async () => {
  await qemu.kill();
  rmSync(dir, { recursive: true, force: true });
  expect(native.debugCounters()).toEqual({ threads: 0, engines: 0, descriptors: 0 });
});

const attached = async (stagingBytesMax = 8 << 20): Promise<NativeCheckpointer & AsyncDisposable> => {
  const engine = new native.Checkpointer({
    pid: qemu.pid,
    ram: qemu.ram,
    stagingBytesMax,
    copyThreads: 2,
  });
  await engine.attach();
  return Object.assign(engine, {
    [Symbol.asyncDispose]: async () => {
      await engine.detach();
      await engine.close();
    },
  });
};

let serial = 0;
const layerPaths = () => {
  const name = join(dir, String(++serial));
  return { ram: `${name}.ram`, index: `${name}.index` };
};

/** One layer, of a VM that stands still at the end. `during` writes while its rounds go on. */
const takeLayer = async (
  engine: NativeCheckpointer,
  full: boolean,
  during: (() => void) | undefined = undefined,
): Promise<LayerFiles> => {
  const { ram, index } = layerPaths();
  await engine.begin({ ramPath: ram, full });
  await engine.round();
  during?.();
  await engine.capture();
  const { digest } = await engine.finish({ indexPath: index });
  await engine.commit();
  return { ram, index, digest };
};

/** A copy of guest RAM as it is now. */
const snapshot = (): string => {
  const path = join(dir, `${++serial}.copy`);
  copyFileSync(qemu.ramPath, path);
  return path;
};

const assembled = async (layers: readonly LayerFiles[]): Promise<string> => {
  const path = join(dir, `${++serial}.assembled`);
  await native.assembleRam({ layers, path });
  return path;
};

const expectSame = async (layers: readonly LayerFiles[], copy: string): Promise<void> => {
  expect(await native.compareFiles(await assembled(layers), copy, RAM_BYTES, pageBytes, 10)).toEqual([]);
};

const flipByte = async (path: string, at: number): Promise<void> => {
  const file = await open(path, 'r+');
  const byte = Buffer.alloc(1);
  await file.read(byte, 0, 1, at);
  byte[0]! ^= 1;
  await file.write(byte, 0, 1, at);
  await file.close();
};

describe('01 layers', () => {
  test('a full one, and increments over it, each as memory was', async () => {
    await using engine = await attached();
    qemu.writePages([100, 101, 102, 900], 1);
    const layers = [await takeLayer(engine, true, () => qemu.writePages([102, 103], 2))];
    const copies = [snapshot()];
    for (const seed of [3, 4, 5]) {
      layers.push(
        await takeLayer(engine, false, () => {
          qemu.writePages([100 + seed, 900], seed);
          qemu.clearPages([101 + seed]);
        }),
      );
      copies.push(snapshot());
    }
    for (const [index, copy] of copies.entries()) await expectSame(layers.slice(0, index + 1), copy);
    expect(await native.verifyLayers({ layers, limit: 10 })).toEqual([]);
  });

  test('an increment has only what was written, and says which pages became zero', async () => {
    await using engine = await attached();
    qemu.writePages([200, 201], 7);
    await takeLayer(engine, true);
    const { ram, index } = layerPaths();
    await engine.begin({ ramPath: ram, full: false });
    qemu.writePages([200], 8);
    qemu.clearPages([201]);
    await engine.capture();
    const finished = await engine.finish({ indexPath: index });
    expect(finished).toMatchObject({ pages: 1, zeroPages: 1 });
    expect(statSync(ram).size).toBe(RAM_BYTES);
    expect(statSync(ram).blocks * 512).toBeLessThan(64 << 10);
    await engine.commit();
  });

  test('what a layer that was given up had is in the next one', async () => {
    await using engine = await attached();
    qemu.writePages([300, 301], 9);
    const layers = [await takeLayer(engine, true)];
    for (const end of ['give-up', 'begin-again'] as const) {
      qemu.writePages([300], 10);
      await engine.begin({ ramPath: layerPaths().ram, full: false });
      await engine.round();
      qemu.writePages([301], 11);
      await engine.capture();
      await engine.finish({ indexPath: layerPaths().index });
      if (end === 'give-up') await engine.giveUp();
      layers.push(await takeLayer(engine, false));
      await expectSame(layers, snapshot());
    }
  });

  test('after a full one that was given up only a full one will do', async () => {
    await using engine = await attached();
    await engine.begin({ ramPath: layerPaths().ram, full: true });
    await engine.round();
    await engine.giveUp();
    await expect(engine.begin({ ramPath: layerPaths().ram, full: false })).rejects.toMatchObject({
      code: 'HOLDFAST_E_PROTOCOL',
    });
    await expectSame([await takeLayer(engine, true)], snapshot());
  });

  test('more than staging holds is written where it lies', async () => {
    await using engine = await attached(1 << 20);
    const { ram, index } = layerPaths();
    await engine.begin({ ramPath: ram, full: true });
    await engine.round();
    qemu.writePages(
      Array.from({ length: 600 }, (_, i) => 1_000 + i),
      12,
    );
    expect(await engine.capture()).toMatchObject({ staged: false, dirtyPages: 600 });
    const { digest } = await engine.finish({ indexPath: index });
    await engine.commit();
    await expectSame([{ ram, index, digest }], snapshot());
  });

  test('cancelled writes leave the tracker whole', async () => {
    await using engine = await attached();
    const layers = [await takeLayer(engine, true)];
    qemu.writePages([400, 401], 13);
    await engine.begin({ ramPath: layerPaths().ram, full: false });
    const round = engine.round();
    engine.cancelWrites();
    // The round may have been over already.
    await round.catch((error: { code: string }) => expect(error.code).toBe('HOLDFAST_E_CANCELLED'));
    await engine.giveUp();
    layers.push(await takeLayer(engine, false));
    await expectSame(layers, snapshot());
  });

  test('QEMU is as it was when the engine has let go', async () => {
    const before = qemu.userfaults();
    {
      await using _engine = await attached();
      expect(qemu.userfaults()).toBe(before + 1);
    }
    expect(qemu.userfaults()).toBe(before);
  });
});

describe('02 merges', () => {
  test('any writes, any merges: each checkpoint that is left reads as memory was', async () => {
    await using engine = await attached();
    const page = fc.integer({ min: 500, max: 560 });
    const step = fc.record({
      written: fc.array(page, { maxLength: 12 }),
      cleared: fc.array(page, { maxLength: 6 }),
    });
    await fc.assert(
      fc.asyncProperty(fc.array(step, { minLength: 2, maxLength: 5 }), fc.nat(), async (steps, cut) => {
        const layers: LayerFiles[] = [];
        const copies: string[] = [];
        for (const [index, { written, cleared }] of steps.entries()) {
          layers.push(
            await takeLayer(engine, index === 0, () => {
              qemu.writePages(written, 20 + index);
              qemu.clearPages(cleared);
            }),
          );
          copies.push(snapshot());
        }
        const merges = 1 + (cut % (steps.length - 1));
        for (let merged = 0; merged < merges; merged++) {
          const [lower, upper] = layers as [LayerFiles, LayerFiles];
          const index = layerPaths().index;
          // Twice: as it is after one that was cut off, and with the lower one half written.
          await native.mergeLayers({ lower, upper, indexPath: index });
          for (const [at, copy] of copies.slice(1).entries()) await expectSame(layers.slice(0, at + 2), copy);
          const { digest } = await native.mergeLayers({ lower, upper, indexPath: index });
          layers.splice(0, 2, { ram: lower.ram, index, digest });
          copies.shift();
          for (const [at, copy] of copies.entries()) await expectSame(layers.slice(0, at + 1), copy);
        }
        expect(await native.verifyLayers({ layers, limit: 1 })).toEqual([]);
      }),
      { numRuns: 12 },
    );
  });
});

describe('03 damage', () => {
  let layers: LayerFiles[];
  beforeAll(async () => {
    await using engine = await attached();
    qemu.writePages([700, 701, 702], 30);
    layers = [await takeLayer(engine, true)];
    qemu.writePages([701], 31);
    layers.push(await takeLayer(engine, false));
  });

  test('a page is named with its layer, and no RAM is made of it', async () => {
    await flipByte(layers[1]!.ram, 701 * pageBytes + 5);
    expect(await native.verifyLayers({ layers, limit: 10 })).toEqual([{ layer: 1, page: 701 }]);
    const path = join(dir, 'never');
    const failure = native.assembleRam({ layers, path });
    await expect(failure).rejects.toMatchObject({ code: 'HOLDFAST_E_CHECKSUM' });
    await expect(failure).rejects.toThrow(`${layers[1]!.ram}: page 701 (byte ${701 * pageBytes}) is damaged`);
    expect(() => statSync(path)).toThrow('ENOENT');
    await flipByte(layers[1]!.ram, 701 * pageBytes + 5);
    expect(await native.verifyLayers({ layers, limit: 10 })).toEqual([]);
  });

  test('below a page of the layer above it does no harm, and spoils the layer itself', async () => {
    await flipByte(layers[0]!.ram, 701 * pageBytes);
    expect(await native.verifyLayers({ layers, limit: 10 })).toEqual([]);
    expect(await native.verifyLayers({ layers: layers.slice(0, 1), limit: 10 })).toEqual([
      { layer: 0, page: 701 },
    ]);
    await flipByte(layers[0]!.ram, 701 * pageBytes);
  });

  test('a merge does not spread it', async () => {
    await flipByte(layers[1]!.ram, 701 * pageBytes + 9);
    const [lower, upper] = layers as [LayerFiles, LayerFiles];
    const indexPath = layerPaths().index;
    await expect(native.mergeLayers({ lower, upper, indexPath })).rejects.toThrow('page 701');
    await flipByte(layers[1]!.ram, 701 * pageBytes + 9);
  });

  test('every byte of an index counts', async () => {
    const { index } = layers[1]!;
    const bytes = readFileSync(index).length;
    for (let at = 0; at < bytes; at++) {
      await flipByte(index, at);
      await expect(native.verifyLayers({ layers, limit: 1 })).rejects.toMatchObject({
        code: 'HOLDFAST_E_CHECKSUM',
      });
      await flipByte(index, at);
    }
    expect(await native.verifyLayers({ layers, limit: 1 })).toEqual([]);
  });

  test('an index that is whole, but another one, is refused', async () => {
    const [lower, upper] = layers as [LayerFiles, LayerFiles];
    const swapped = { ...upper, index: lower.index };
    await expect(native.verifyLayers({ layers: [lower, swapped], limit: 1 })).rejects.toThrow('not the one');
    await expect(native.verifyLayers({ layers: [upper], limit: 1 })).rejects.toThrow('does not go with');
  });

  test('a file that was cut short is refused', async () => {
    const short = { ...layers[1]!, ram: join(dir, 'short') };
    copyFileSync(layers[1]!.ram, short.ram);
    const file = await open(short.ram, 'r+');
    await file.truncate(RAM_BYTES - pageBytes);
    await file.close();
    await expect(native.verifyLayers({ layers: [layers[0]!, short], limit: 1 })).rejects.toThrow(
      'bytes instead of',
    );
  });
});

describe('04 copies of images', () => {
  test('content and holes are the same', async () => {
    const from = join(dir, 'image');
    const file = await open(from, 'w');
    await file.truncate((8 << 20) + 100);
    await file.write(Buffer.from('first'), 0, 5, 1 << 20);
    await file.write(Buffer.from('last'), 0, 4, (8 << 20) + 96);
    await file.close();
    const to = join(dir, 'image-copy');
    expect(await native.copySparse({ from, to })).toMatchObject({ bytes: (8 << 20) + 100 });
    expect(readFileSync(to).equals(readFileSync(from))).toBe(true);
    expect(statSync(to).blocks * 512).toBeLessThan(1 << 20);
    await expect(native.copySparse({ from, to })).rejects.toMatchObject({ code: 'HOLDFAST_E_SYSCALL' });
  });
});
