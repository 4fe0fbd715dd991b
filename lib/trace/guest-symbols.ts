/** The guest kernel's symbols, out of its /proc/kallsyms, a System.map, or lines of either. */
import { readFile } from 'node:fs/promises';
import { ConfigError } from '../errors.js';
import type { GuestSymbols } from './binding.js';

const required = [
  '_text',
  'linux_banner',
  '__per_cpu_offset',
  'runqueues',
  '__start_BTF',
  '__stop_BTF',
] as const;
/** Missing where the kernel's memory layout is fixed. */
const optional = ['page_offset_base'] as const;

export const symbolsCommand = `grep -wE '${[...required, ...optional].join('|')}' /proc/kallsyms`;

const CURE = `In the guest, as root: ${symbolsCommand}`;

/**
 * Lines of `address type name`; others are passed over.
 * @throws ConfigError if a symbol is missing, or all are 0 (kptr_restrict)
 */
export const parseGuestSymbols = (text: string): GuestSymbols => {
  const wanted = new Set<string>([...required, ...optional]);
  const found = new Map<string, bigint>();
  for (const [, address, name] of text.matchAll(/^([0-9a-f]{1,16}) \w (\w+)[ \t\r]*$/gm)) {
    if (wanted.has(name!) && !found.has(name!)) found.set(name!, BigInt(`0x${address}`));
  }
  const missing = required.filter((name) => !found.has(name));
  if (missing.length > 0) {
    throw new ConfigError(`the guest's symbols lack ${missing.join(', ')}`, {
      cure: `${CURE} (Debian's /boot/System.map is empty. Without __start_BTF the kernel was built without BTF.)`,
    });
  }
  if (found.get('_text') === 0n) {
    throw new ConfigError(
      "the guest's symbols have no addresses: they were read by a user who may not see them",
      {
        cure: CURE,
      },
    );
  }
  return Object.fromEntries(found) as unknown as GuestSymbols;
};

/** @throws ConfigError */
export const readGuestSymbols = async (path: string): Promise<GuestSymbols> => {
  try {
    return parseGuestSymbols(await readFile(path, 'latin1'));
  } catch (cause) {
    if (cause instanceof ConfigError) throw cause;
    throw new ConfigError(`the guest's symbols: cannot read ${path}: ${(cause as Error).message}`, { cause });
  }
};
