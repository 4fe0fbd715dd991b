/**
 * Asks a guest's redis for the time, over one connection and again and again. A program of its own, since
 * it must live in the client's namespace: `node clock-role.js '{"host":…,"port":…,"pauseMs":…}'`.
 * Says each sample as a JSON line; ends with 1 when the connection breaks, with 0 at the end of its input.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { RespConnection } from '../../test/lab/resp.js';

const say = (value: object): void => {
  process.stdout.write(`${JSON.stringify(value)}\n`);
};

const { host, port, pauseMs } = JSON.parse(process.argv[2] ?? '{}') as {
  readonly host: string;
  readonly port: number;
  readonly pauseMs: number;
};

/** gettimeofday() of the guest, as redis gives it: seconds and microseconds. */
const millisecondsOf = (reply: unknown): number => {
  const [seconds, microseconds] = Array.isArray(reply) ? reply.map(Number) : [];
  if (seconds === undefined || microseconds === undefined || Number.isNaN(seconds + microseconds))
    throw new Error(`TIME was answered with ${JSON.stringify(reply)}`);
  return seconds * 1e3 + microseconds / 1e3;
};

process.stdin.on('end', () => process.exit(0)).resume();
const connection = await RespConnection.connect(host, port, 10_000);
say({ event: 'connected' });
try {
  for (;;) {
    // Monotonic: what corrects the host's clock meanwhile is not the guest's doing.
    const askedMs = performance.timeOrigin + performance.now();
    const guestMs = millisecondsOf(await connection.send('TIME'));
    say({ event: 'sample', askedMs, guestMs });
    await sleep(pauseMs);
  }
} catch (error) {
  say({ event: 'broken', message: error instanceof Error ? error.message : String(error) });
  process.exit(1);
}
