/**
 * The command line of a QEMU that took its VM over from another one (lib/handoff): it was started with temporary
 * names for what only one of the two could have, and has the true ones since. It carries what is true in its
 * environment: nothing that could be lost, or be of another process.
 */
import { readFile } from 'node:fs/promises';
import { z } from 'zod';

const VARIABLE = 'HOLDFAST_KNOWN_ARGUMENTS';
const argumentsSchema = z.array(z.string());

/** Of a process; undefined: its command line is what it was started with. */
export const knownArguments = async (pid: number): Promise<readonly string[] | undefined> => {
  const { [VARIABLE]: text } = await environmentOf(pid);
  if (text === undefined) return undefined;
  try {
    return argumentsSchema.parse(JSON.parse(text));
  } catch {
    return undefined; // not ours
  }
};

/** The environment for a QEMU that is started in the place of `pid`. */
export const environmentWith = async (
  pid: number,
  argv: readonly string[],
): Promise<Record<string, string>> => ({
  ...(await environmentOf(pid)),
  [VARIABLE]: JSON.stringify(argv),
});

const environmentOf = async (pid: number): Promise<Record<string, string>> => {
  const text = await readFile(`/proc/${pid}/environ`, 'utf8');
  return Object.fromEntries(
    text.split('\0').flatMap((entry) => {
      const equals = entry.indexOf('=');
      return equals > 0 ? [[entry.slice(0, equals), entry.slice(equals + 1)]] : [];
    }),
  );
};
