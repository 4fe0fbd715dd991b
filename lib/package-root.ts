/** Where this package is installed: the same from lib/ and from dist/lib/. */
import { existsSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

/** Nearest directory upwards that holds package.json. */
export const packageRoot = (): string => {
  let dir = dirname(fileURLToPath(import.meta.url));
  while (!existsSync(join(dir, 'package.json'))) {
    const parent = dirname(dir);
    if (parent === dir) throw new Error('holdfast: package.json not found above the installed files');
    dir = parent;
  }
  return dir;
};
