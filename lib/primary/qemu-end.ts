/** What a closed monitor means: QEMU has ended, by whose wish it says itself, or it runs and only the monitor is gone. */
import type { QmpClient } from '../qmp/client.js';
import { endsSoon, type ProcessIdentity } from '../vm/process.js';

/** SHUTDOWN reasons that are not the guest's or the operator's wish. */
const KILLED_FROM_OUTSIDE: ReadonlySet<string> = new Set(['host-error', 'host-signal']);

export interface QemuEnded {
  /** As the guest or the operator wished; else it was lost. */
  readonly wished: boolean;
  readonly reason: string;
}

export class QemuEnd {
  #shutdownReason: string | undefined;

  /** Listens from now on. */
  constructor(qmp: QmpClient) {
    const startedAgain = (): void => {
      this.#shutdownReason = undefined; // -no-shutdown
    };
    qmp.on('RESET', startedAgain);
    qmp.on('RESUME', startedAgain);
    qmp.on('SHUTDOWN', ({ data }) => {
      this.#shutdownReason = String(data.reason ?? 'unknown');
    });
  }

  /** After the monitor closed. Undefined: QEMU runs. */
  async of(process: ProcessIdentity): Promise<QemuEnded | undefined> {
    if (!(await endsSoon(process))) return undefined;
    const reason = this.#shutdownReason;
    return {
      wished: reason !== undefined && !KILLED_FROM_OUTSIDE.has(reason),
      reason: reason ?? 'QEMU ended without a shutdown',
    };
  }
}
