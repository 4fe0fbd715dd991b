/** What a backup needs for VMs with disks (lib/backup/disk-support.ts), as it is in production. */
import type { DiskSupport } from '../backup/disk-support.js';
import { native } from '../native.js';
import { diskMetaDir } from './disk-files.js';
import { findDiskServers } from './found-servers.js';
import { StandbyDisks } from './standby-disks.js';

export const diskSupport: DiskSupport = {
  metaDirOf: diskMetaDir,
  openStore: ({ disks, onFault }) =>
    new native.DiskStore({
      disks,
      onEvent: (event) => {
        if (event.type === 'fault') onFault(event);
      },
    }),
  standby: (options) => new StandbyDisks(options),
  find: findDiskServers,
};
