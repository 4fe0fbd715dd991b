/**
 * How many epochs are compared page for page: at least 200 of each capture mode and sender, half of them with
 * either device-state path. The sum is made here, over two files:
 *
 *                                                       xen-save   migrate-fd
 *   memory.test.ts  Linux on TCG: one path with 1 vCPU,
 *                   the other with 2                        80           80
 *   kvm.test.ts     the flat guest: both paths              20           20
 *                                                          ───          ───
 *   of each mode and sender                                100          100
 *
 * Under /dev/kvm that is 40 of each mode and sender: 240 of each mode, or 200 where the kernel lacks one sender.
 * What huge-pages.test.ts compares, and the epochs with a sender of their own each, come on top.
 */

/** With each number of vCPUs, of each mode and sender. */
export const EPOCHS_ON_TCG = 80;
/** With each device-state path, of each mode and sender. */
export const EPOCHS_ON_KVM = 20;
