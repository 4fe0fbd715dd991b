/** When something happened to a VM, by QEMU's own clock: the time stamps of its events. */
import type { QmpEvent } from '../lib/qmp/commands.js';

/** Milliseconds since 1970. */
export const eventMs = ({ timestamp }: QmpEvent): number =>
  timestamp.seconds * 1e3 + timestamp.microseconds / 1e3;
