/** Starts lab-relay.ts in front of the backup on host b. */

import { join } from 'node:path';
import { CONTROL_PORT } from '../../lab/daemons.js';
import { repositoryRoot } from '../../lab/guest.js';
import { JsonProcess } from '../../lab/json-process.js';
import type { Lab } from '../../lab/lab.js';
import { lanAddresses, replicationLinks } from '../../lab/network.js';
import type { RelayOptions } from './lab-relay.js';

/** The backup uses one of them at a time. */
const bulkPorts = [7790, 7791] as const;

/** For the backup that the relay stands in front of. */
export const relayedBackupArgs = [
  ...['--listen', `${lanAddresses.b}:${CONTROL_PORT}`],
  ...['--bulk-port', String(bulkPorts[0])],
] as const;

/** Settles when it listens where the primary looks for the backup. */
export const startRelay = async (lab: Lab): Promise<JsonProcess> => {
  const options: RelayOptions = {
    from: replicationLinks.aToB.to.address,
    to: lanAddresses.b,
    controlPort: CONTROL_PORT,
    bulkPorts,
  };
  const program = join(repositoryRoot(), 'dist/test/e2e/support/lab-relay.js');
  const relay = new JsonProcess(
    await lab.host('b').spawn(process.execPath, [program, JSON.stringify(options)]),
  );
  await relay.message('listening');
  return relay;
};
