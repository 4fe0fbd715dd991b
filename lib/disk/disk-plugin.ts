/** Where nbdkit's plugin of this package is: built here, or packed with it. */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { UnsupportedHostError } from '../errors.js';
import { packageRoot } from '../package-root.js';

/** HOLDFAST_NBDKIT: another one, such as a script that adds filters of nbdkit before the plugin. */
export const NBDKIT_DEFAULT = process.env.HOLDFAST_NBDKIT || 'nbdkit';

/** @throws UnsupportedHostError if it was not built */
export const diskPluginPath = (): string => {
  const root = packageRoot();
  const places = [
    join(root, 'build/Release/holdfast_disk.so'),
    join(root, `prebuilds/${process.platform}-${process.arch}/holdfast_disk.so`),
  ];
  const found = places.find((path) => existsSync(path));
  if (found === undefined) {
    throw new UnsupportedHostError(`nbdkit's plugin is not built: there is no ${places[0]}`, {
      cure: 'Build it: install nbdkit-plugin-dev, then npm run build:native.',
    });
  }
  return found;
};
