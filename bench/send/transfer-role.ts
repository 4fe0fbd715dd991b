/**
 * One side of the transfers, as a process in its lab host: Holdfast's library
 * as anyone would use it, a command a line on stdin.
 *
 *   node transfer-role.js sender FILE REGION_BYTES
 *   node transfer-role.js receiver DIRECTORY REGION_BYTES
 */
import { randomBytes } from 'node:crypto';
import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { openReceiver, openSender, type PageReceiver, type PageSender } from '../../lib/index.js';
import type { ReceivedMessage, ReceiverCommand, SenderCommand, SentMessage } from './protocol.js';
import { pageBytes } from './region.js';
import { runsOf } from './scatter.js';

const TIMEOUT_MS = 60_000;

const say = (value: object): void => {
  process.stdout.write(`${JSON.stringify(value)}\n`);
};

const fail = (error: unknown): never => {
  say({ event: 'error', message: error instanceof Error ? error.message : String(error) });
  process.exit(1);
};

const commands = async function* <Command>(): AsyncGenerator<Command> {
  for await (const line of createInterface({ input: process.stdin })) yield JSON.parse(line) as Command;
};

const take = <Value>(lanes: ReadonlyMap<string, Value>, lane: string): Value => {
  const found = lanes.get(lane);
  if (found === undefined) throw new Error(`lane ${lane} is not open`);
  return found;
};

const runSender = async (file: string, regionBytes: number): Promise<void> => {
  const lanes = new Map<string, PageSender>();

  const open = async (command: SenderCommand & { do: 'open' }): Promise<void> => {
    const { host, port, strategy, streams, staged, verify } = command;
    const token = Buffer.from(command.token, 'hex');
    try {
      const sender = await openSender({
        to: { host, port, token },
        file,
        regionBytes,
        pageSize: pageBytes,
        strategy,
        streams,
        staged,
        verify,
        timeoutMs: TIMEOUT_MS,
      });
      lanes.set(command.lane, sender);
      say({ event: 'opened' });
    } catch (error) {
      // A strategy that this kernel lacks is left out, not fatal.
      say({ event: 'refused', message: (error as Error).message });
    }
  };

  const send = async (command: SenderCommand & { do: 'send' }): Promise<SentMessage> => {
    const sender = take(lanes, command.lane);
    const runs = runsOf(regionBytes / pageBytes, command);
    const before = process.cpuUsage();
    const result = await sender.send(runs);
    const { user, system } = process.cpuUsage(before);
    if (result.pages !== command.pages) {
      throw new Error(`${command.lane}: ${result.pages} pages were sent, not ${command.pages}`);
    }
    const { strategy, bytes, sendMs, ackMs, cpuMs, syscalls, copiedBytes, referenceBytes } = result;
    return {
      event: 'sent',
      strategy,
      bytes,
      sendMs,
      ackMs,
      cpuMs,
      processCpuMs: (user + system) / 1e3,
      syscalls,
      copiedBytes,
      referenceBytes,
    };
  };

  for await (const command of commands<SenderCommand>()) {
    switch (command.do) {
      case 'open':
        await open(command);
        break;
      case 'send':
        say(await send(command));
        break;
      case 'close':
        await take(lanes, command.lane).close();
        lanes.delete(command.lane);
        say({ event: 'closed' });
        break;
    }
  }
};

const runReceiver = async (directory: string, regionBytes: number): Promise<void> => {
  const lanes = new Map<string, PageReceiver>();
  const pathOf = (lane: string): string => join(directory, `received-${lane}`);

  const report = async (receiver: PageReceiver): Promise<void> => {
    for await (const { applied, receiveMs, receiveCpuMs, receiveSyscalls, digestMs } of receiver) {
      await applied;
      say({
        event: 'received',
        receiveMs,
        receiveCpuMs,
        receiveSyscalls,
        digestMs,
      } satisfies ReceivedMessage);
    }
  };

  const open = async ({ lane, host, verify }: ReceiverCommand & { do: 'open' }): Promise<void> => {
    const token = randomBytes(32);
    const receiver = await openReceiver({
      listen: { host, port: 0 },
      file: pathOf(lane),
      regionBytes,
      pageSize: pageBytes,
      token,
      verify,
    });
    lanes.set(lane, receiver);
    void report(receiver).catch(fail);
    say({ event: 'opened', port: receiver.port, token: token.toString('hex') });
  };

  for await (const command of commands<ReceiverCommand>()) {
    switch (command.do) {
      case 'open':
        await open(command);
        break;
      case 'close':
        await take(lanes, command.lane).close();
        lanes.delete(command.lane);
        await rm(pathOf(command.lane), { force: true });
        say({ event: 'closed' });
        break;
    }
  }
};

const [role, path = '', regionBytes = ''] = process.argv.slice(2);
const run = role === 'sender' ? runSender : runReceiver;
run(path, Number(regionBytes)).catch(fail);
