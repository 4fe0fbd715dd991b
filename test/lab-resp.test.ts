import { createServer } from 'node:net';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { LatencyHistogram } from './lab/latency-histogram.js';
import { encodeCommand, parseReply, type Reply, RespConnection, RespError } from './lab/resp.js';

const parseAll = (data: Buffer): Reply[] => {
  const replies: Reply[] = [];
  for (let at = 0; at < data.length; ) {
    const parsed = parseReply(data, at);
    if (parsed === undefined) throw new Error('incomplete');
    replies.push(parsed.reply);
    at = parsed.end;
  }
  return replies;
};

describe('RESP', () => {
  test('replies of every kind', () => {
    const text = '+OK\r\n:-7\r\n$3\r\na\r\n\r\n$0\r\n\r\n$-1\r\n*2\r\n:1\r\n*1\r\n+x\r\n-ERR no\r\n*-1\r\n';
    const replies = parseAll(Buffer.from(text));
    expect(replies).toEqual(['OK', -7, 'a\r\n', '', null, [1, ['x']], new RespError('ERR no'), null]);
    expect(replies[6]).toBeInstanceOf(RespError);
  });

  test('every proper prefix of a reply is incomplete', () => {
    const whole = Buffer.from(encodeCommand(['SET', 'käse', 'x\r\ny']));
    for (let length = 1; length < whole.length; length += 1) {
      expect(parseReply(whole.subarray(0, length), 0)).toBeUndefined();
    }
    expect(parseAll(whole)).toEqual([['SET', 'käse', 'x\r\ny']]);
  });

  test('anything else is refused, never guessed', () => {
    for (const text of ['hello\r\n', ':\r\n', ':1x\r\n', '$-2\r\n', '$99999999999\r\n', '*1e9\r\n']) {
      expect(() => parseReply(Buffer.from(text), 0)).toThrow(/not (a )?RESP/);
    }
  });

  test('replies go to the commands in order, however the bytes are cut', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.array(fc.nat(1000), { minLength: 1, maxLength: 20 }),
        fc.nat(15),
        async (values, cut) => {
          const bytes = Buffer.from(values.map((value) => `:${value}\r\n`).join(''));
          const server = createServer(async (socket) => {
            // Unread requests would keep the socket from noticing its end.
            socket.setNoDelay(true).resume();
            for (let at = 0; at < bytes.length; at += cut + 1) {
              socket.write(bytes.subarray(at, at + cut + 1));
              await new Promise(setImmediate);
            }
          });
          await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
          const { port } = server.address() as { port: number };
          const connection = await RespConnection.connect('127.0.0.1', port, 5000);
          // The server answers before it is asked; all commands are queued in this same turn.
          expect(await Promise.all(values.map(() => connection.send('PING')))).toEqual(values);
          const unanswered = connection.send('PING');
          connection.destroy();
          await expect(unanswered).rejects.toThrow('closed by this side');
          await expect(connection.send('PING')).rejects.toThrow('closed by this side');
          await new Promise((resolve) => server.close(resolve));
        },
      ),
      { numRuns: 25 },
    );
  });
});

test('latency percentiles are at most 1 % too high, and exact at the top', () => {
  const histogram = new LatencyHistogram();
  expect(histogram.percentileMs(0.5)).toBe(0);
  for (let value = 1; value <= 1000; value += 1) histogram.add(value);
  for (const [share, exact] of [
    [0.5, 500],
    [0.99, 990],
  ] as const) {
    expect(histogram.percentileMs(share)).toBeGreaterThanOrEqual(exact);
    expect(histogram.percentileMs(share)).toBeLessThanOrEqual(exact * 1.011);
  }
  expect(histogram.percentileMs(1)).toBe(1000);
  expect(histogram.maxMs).toBe(1000);
});
