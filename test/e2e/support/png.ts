/** Reads the PNG files that a browser writes as screenshots: 8 bits a channel, RGB or RGBA, not interlaced. */
import { inflateSync } from 'node:zlib';

export interface Picture {
  readonly width: number;
  readonly height: number;
  /** `rrggbb` of a pixel. */
  colourAt(x: number, y: number): string;
}

const SIGNATURE = '89504e470d0a1a0a';

/** PNG specification, part 9: each byte is stored as its difference from a neighbour's. */
const paeth = (left: number, above: number, aboveLeft: number): number => {
  const estimate = left + above - aboveLeft;
  const [toLeft, toAbove, toAboveLeft] = [left, above, aboveLeft].map((value) => Math.abs(estimate - value));
  if (toLeft! <= toAbove! && toLeft! <= toAboveLeft!) return left;
  return toAbove! <= toAboveLeft! ? above : aboveLeft;
};

const unfilter = (raw: Buffer, rows: number, rowBytes: number, pixelBytes: number): Buffer => {
  const out = Buffer.alloc(rows * rowBytes);
  for (let row = 0; row < rows; row += 1) {
    const filter = raw[row * (rowBytes + 1)]!;
    const from = row * (rowBytes + 1) + 1;
    const to = row * rowBytes;
    for (let at = 0; at < rowBytes; at += 1) {
      const left = at < pixelBytes ? 0 : out[to + at - pixelBytes]!;
      const above = row === 0 ? 0 : out[to + at - rowBytes]!;
      const aboveLeft = row === 0 || at < pixelBytes ? 0 : out[to + at - rowBytes - pixelBytes]!;
      const predicted = [0, left, above, (left + above) >> 1, paeth(left, above, aboveLeft)][filter];
      if (predicted === undefined) throw new Error(`PNG filter ${filter} does not exist`);
      out[to + at] = raw[from + at]! + predicted;
    }
  }
  return out;
};

export const decodePng = (file: Buffer): Picture => {
  if (file.toString('hex', 0, 8) !== SIGNATURE) throw new Error('not a PNG');
  let [width, height, pixelBytes] = [0, 0, 0];
  const data: Buffer[] = [];
  for (let at = 8; at < file.length; ) {
    const length = file.readUInt32BE(at);
    const type = file.toString('latin1', at + 4, at + 8);
    const chunk = file.subarray(at + 8, at + 8 + length);
    if (type === 'IHDR') {
      [width, height] = [chunk.readUInt32BE(0), chunk.readUInt32BE(4)];
      const [depth, colourType, , , interlaced] = chunk.subarray(8);
      pixelBytes = colourType === 2 ? 3 : 4;
      if (depth !== 8 || (colourType !== 2 && colourType !== 6) || interlaced !== 0)
        throw new Error(`a PNG of depth ${depth} and colour type ${colourType} is not read here`);
    }
    if (type === 'IDAT') data.push(chunk);
    at += 12 + length;
  }
  const rowBytes = width * pixelBytes;
  const pixels = unfilter(inflateSync(Buffer.concat(data)), height, rowBytes, pixelBytes);
  return {
    width,
    height,
    colourAt: (x, y) =>
      pixels.toString('hex', y * rowBytes + x * pixelBytes, y * rowBytes + x * pixelBytes + 3),
  };
};
