/** Values of flags: durations, sizes, replacements. Pure; every failure is a ConfigError that names the flag. */
import { ConfigError } from '../errors.js';

const MS_PER: Readonly<Record<string, number>> = { '': 1, ms: 1, s: 1_000, m: 60_000, min: 60_000 };
const BYTES_PER: Readonly<Record<string, number>> = {
  K: 2 ** 10,
  M: 2 ** 20,
  G: 2 ** 30,
  T: 2 ** 40,
};

/** `25`, `25ms`, `2s`, `1.5m`: in milliseconds. */
export const parseDurationMs = (text: string, flag: string): number => {
  const match = /^(\d+(?:\.\d+)?)\s*(ms|s|m|min)?$/.exec(text.trim());
  if (match === null) {
    throw new ConfigError(`${flag}: '${text}' is not a duration`, {
      cure: 'Write it like 25, 25ms, 2s or 1m; without a unit it means milliseconds.',
    });
  }
  return Number(match[1]) * MS_PER[match[2] ?? '']!;
};

/** `256M`, `1G`, `512MiB`: in bytes. Without a unit `unitIfNone` applies. Units are powers of 1024. */
export const parseSizeBytes = (text: string, flag: string, unitIfNone: 'M' | '' = ''): number => {
  const match = /^(\d+(?:\.\d+)?)\s*(?:([KMGT])(?:i?B)?)?$/i.exec(text.trim());
  if (match === null) {
    throw new ConfigError(`${flag}: '${text}' is not a size`, {
      cure: 'Write it like 256M or 1G (powers of 1024).',
    });
  }
  const unit = (match[2] ?? unitIfNone).toUpperCase();
  return Number(match[1]) * (unit === '' ? 1 : BYTES_PER[unit]!);
};

/** A size in whole MiB. */
export const parseSizeMiB = (text: string, flag: string): number => {
  const mib = parseSizeBytes(text, flag, 'M') / 2 ** 20;
  if (!Number.isInteger(mib)) throw new ConfigError(`${flag}: '${text}' is not a whole number of MiB`);
  return mib;
};

export const parseInteger = (text: string, flag: string): number => {
  if (!/^\d+$/.test(text.trim())) throw new ConfigError(`${flag}: '${text}' is not a whole number`);
  return Number(text);
};

/** `on` or `off`. */
export const parseSwitch = (text: string, flag: string): boolean => {
  if (text === 'on' || text === 'off') return text === 'on';
  throw new ConfigError(`${flag}: '${text}' is neither on nor off`);
};

export const switchText = (isOn: boolean): string => (isOn ? 'on' : 'off');

export interface Replacement {
  readonly from: string;
  readonly to: string;
}

/** `FROM=TO`. The first `=` divides; TO may be empty. */
export const parseReplacement = (text: string, flag: string): Replacement => {
  const equals = text.indexOf('=');
  if (equals < 1) {
    throw new ConfigError(`${flag}: '${text}' is not FROM=TO`, {
      cure: 'For example --replace tap0=tap7, or --replace /srv/images=/mnt/images.',
    });
  }
  return { from: text.slice(0, equals), to: text.slice(equals + 1) };
};

export const durationText = (ms: number): string => {
  if (ms >= 60_000 && ms % 60_000 === 0) return `${ms / 60_000}m`;
  return ms >= 1_000 && ms % 1_000 === 0 ? `${ms / 1_000}s` : `${ms}ms`;
};

export const sizeText = (bytes: number): string => {
  for (const unit of ['T', 'G', 'M', 'K']) {
    const per = BYTES_PER[unit]!;
    if (bytes >= per) return `${trimmed(bytes / per)} ${unit}iB`;
  }
  return `${bytes} B`;
};

const trimmed = (value: number): string => (value >= 100 ? value.toFixed(0) : String(+value.toFixed(1)));
