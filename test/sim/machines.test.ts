/** Each test/sim/*.txt is replayed against the machines. HOLDFAST_REWRITE=1 writes what came as what is expected. */
import { readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';
import { replay } from './trace.js';

const directory = dirname(fileURLToPath(import.meta.url));
const files = readdirSync(directory).filter((name) => name.endsWith('.txt'));

describe('the machines do what the traces say', () => {
  it('finds traces', () => expect(files.length).toBeGreaterThan(5));

  it.each(files)('%s', (name) => {
    const path = join(directory, name);
    const text = readFileSync(path, 'utf8');
    const actual = replay(text);
    if (process.env.HOLDFAST_REWRITE === '1') writeFileSync(path, actual);
    else expect(actual).toBe(text);
  });
});
