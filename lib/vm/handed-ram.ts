/**
 * The RAM file of a QEMU that took its VM over with a copy of the memory (lib/handoff/coordinator.ts): the VM's own
 * name, and this behind it, until the QEMU that had the VM has ended; then it is renamed. That QEMU and its command
 * line know it by the first name for ever.
 */
export const HANDED = '.handed';
