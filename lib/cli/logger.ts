/** Logs of the daemons: pino, to stderr; lines for a person, or JSON as pino writes it. */
import pino from 'pino';
import type { Logger } from '../log.js';
import type { CommandConsole } from './console.js';

export const logLevels = ['debug', 'info', 'warn', 'error', 'silent'] as const;
export type LogLevel = (typeof logLevels)[number];

export const makeLogger = (level: LogLevel, console: CommandConsole): Logger =>
  pino(
    { level, base: null, timestamp: pino.stdTimeFunctions.epochTime },
    { write: (line: string) => console.log(console.json ? line : humanLine(line)) },
  );

/** `12:34:56.789 warn  backup lost  reason=… vm=stop` */
export const humanLine = (line: string): string => {
  const { level, time, msg, ...fields } = JSON.parse(line) as Record<string, unknown>;
  const clock = new Date(Number(time)).toISOString().slice(11, 23);
  const name = pino.levels.labels[Number(level)] ?? String(level);
  const rest = Object.entries(fields).map(([key, value]) => ` ${key}=${fieldText(value)}`);
  return `${clock} ${name.padEnd(5)} ${msg}${rest.length > 0 ? ` ${rest.join('')}` : ''}\n`;
};

const fieldText = (value: unknown): string => {
  if (typeof value === 'number' && !Number.isInteger(value)) return value.toFixed(2);
  if (typeof value === 'string') return /^[^\s"=]+$/.test(value) ? value : JSON.stringify(value);
  return JSON.stringify(value) ?? 'undefined';
};
