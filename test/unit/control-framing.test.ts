import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { CONTROL_FRAME_BYTES_MAX, encodeFrame, FrameDecoder } from '../../lib/control/framing.js';
import { ProtocolError } from '../../lib/errors.js';

const length = (value: number): Buffer => {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(value);
  return bytes;
};

describe('control frames', () => {
  it('come out as they went in, however the stream is split', () => {
    fc.assert(
      fc.property(
        fc.array(fc.uint8Array({ minLength: 1, maxLength: 300 }), { maxLength: 20 }),
        fc.array(fc.nat(400), { maxLength: 40 }),
        (bodies, cuts) => {
          const stream = Buffer.concat(bodies.map(encodeFrame));
          const decoder = new FrameDecoder();
          const got: Buffer[] = [];
          let offset = 0;
          for (const cut of [...cuts, stream.length]) {
            got.push(...decoder.push(stream.subarray(offset, offset + cut)));
            offset = Math.min(stream.length, offset + cut);
          }
          got.push(...decoder.push(stream.subarray(offset)));
          expect(got.map((frame) => [...frame])).toEqual(bodies.map((body) => [...body]));
        },
      ),
    );
  });

  it('come out byte by byte', () => {
    const decoder = new FrameDecoder();
    const stream = encodeFrame(Buffer.from('held'));
    const got = [...stream].flatMap((byte) => decoder.push(Uint8Array.of(byte)));
    expect(got.map(String)).toEqual(['held']);
  });

  it('are refused by their length, before their body is there', () => {
    for (const bad of [0, CONTROL_FRAME_BYTES_MAX + 1, 0xffffffff]) {
      expect(() => new FrameDecoder().push(length(bad))).toThrow(ProtocolError);
    }
    expect(new FrameDecoder().push(length(CONTROL_FRAME_BYTES_MAX))).toEqual([]);
  });

  it('have a smaller limit until it is lifted', () => {
    expect(() => new FrameDecoder(100).push(length(101))).toThrow(ProtocolError);
    const decoder = new FrameDecoder(100);
    decoder.liftLimit();
    expect(decoder.push(length(101))).toEqual([]);
  });

  it('do not alias the chunks they came in', () => {
    const decoder = new FrameDecoder();
    const chunk = encodeFrame(Buffer.from('abcd'));
    const [frame] = decoder.push(chunk);
    chunk.fill(0);
    expect(String(frame)).toBe('abcd');
  });

  it('over the limit are not sent', () => {
    expect(() => encodeFrame(new Uint8Array(CONTROL_FRAME_BYTES_MAX + 1))).toThrow(ProtocolError);
  });
});
