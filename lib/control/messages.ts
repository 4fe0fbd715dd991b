/**
 * What the two sides say on the control connection. Every message is checked
 * against its schema when it arrives; inside, it is trusted.
 */
import { z } from 'zod';
import { enquiryMessages } from './enquiry-messages.js';

export const CONTROL_VERSIONS = [4] as const;

const hex = (bytes: number) => z.string().regex(new RegExp(`^[0-9a-f]{${bytes * 2}}$`));
const count = z.number().int().nonnegative();
const text = z.string().max(4096);

export const handshakeMessage = z.discriminatedUnion('type', [
  z.strictObject({
    type: z.literal('hello'),
    protocol: z.literal('holdfast'),
    versions: z.array(z.number().int().positive()).min(1).max(16),
    nonce: hex(32),
  }),
  z.strictObject({ type: z.literal('challenge'), version: z.number().int().positive(), nonce: hex(32) }),
  z.strictObject({ type: z.literal('auth'), mac: hex(32) }),
  z.strictObject({ type: z.literal('welcome'), mac: hex(32) }),
  z.strictObject({ type: z.literal('refused'), code: text, message: text }),
]);
export type HandshakeMessage = z.infer<typeof handshakeMessage>;

/** What the backup must know to launch a standby for the VM. */
export const standbySpec = z.strictObject({
  /** Base name of QEMU's binary; the backup looks it up itself, it never runs a path it was sent. */
  binary: z.string().regex(/^qemu-[a-z0-9_-]+$/),
  qemuVersion: text,
  /** QEMU's arguments without the binary, as on the primary. */
  argv: z.array(z.string().max(65536)).max(4096),
  /** QEMU's working directory there; used here if it exists, for relative paths. */
  cwd: text,
  machineType: text,
  backendId: text,
  replacements: z.array(z.strictObject({ from: z.string().min(1), to: z.string() })).max(256),
  /** The netdevs that a packet relay serves, and what it connects them to; the standby needs one for each. */
  relays: z
    .array(
      z.strictObject({
        netdev: z.string().regex(/^[A-Za-z][A-Za-z0-9._-]{0,63}$/),
        target: z.union([z.strictObject({ tap: text }), z.strictObject({ unix: text })]),
        heldBytesMax: z
          .number()
          .int()
          .min(2 ** 17)
          .max(2 ** 30),
      }),
    )
    .max(64)
    .optional(),
});
export type StandbySpec = z.infer<typeof standbySpec>;

/** A disk that travels with the checkpoint. */
export const sessionDisk = z.strictObject({
  /** Of QEMU's block node or drive. */
  id: z.string().regex(/^[A-Za-z0-9#][A-Za-z0-9._#-]{0,63}$/),
  /** On the primary; the backup's replacements say where its replica is. */
  imagePath: z.string().startsWith('/').max(4096),
  imageBytes: count,
});
export type SessionDisk = z.infer<typeof sessionDisk>;

export const DISKS_MAX = 16;

/** A disk whose content pages may be, so that they need not travel (docs/migration.md). */
export const pageDisk = sessionDisk.omit({ id: true });
export type PageDisk = z.infer<typeof pageDisk>;

export const PAGE_DISKS_MAX = 16;

export const sessionMessage = z.strictObject({
  type: z.literal('session'),
  vmId: z.string().regex(/^[0-9a-f-]{36}$/),
  vmName: text,
  term: count,
  /** False once this primary released output that no checkpoint explains: older checkpoints are void. */
  outputHeld: z.boolean(),
  ramBytes: count,
  pageSize: count,
  deviceBytesMax: count,
  heartbeatIntervalMs: count,
  heartbeatTimeoutMs: count,
  /** Whether the VM's clock goes on, at a takeover, by the time since the checkpoint. */
  guestClockFollows: z.boolean().optional(),
  /** A migration: until it is told to (`switchover`) the backup never runs the VM by itself. */
  handOverOnly: z.boolean().optional(),
  /** Its memory and devices come as one migration stream of QEMU's, over a connection that shows the bulk token. */
  qemuEngine: z.boolean().optional(),
  /**
   * A migration that may be handed over before its memory is there: `now`, with none of it; `auto`, after some
   * rounds, perhaps. What is committed of it is run on the hand-over's word alone, for it may lack pages.
   */
  resumeEarly: z.enum(['auto', 'now']).optional(),
  /**
   * With `resumeEarly`: should the source be lost for good while pages are to come, the backup goes on from the
   * newest checkpoint in this directory, as the backup sees it.
   */
  fallback: z.strictObject({ dir: z.string().startsWith('/').max(4096) }).optional(),
  /** The VM does not run at the primary, which knows no better than the backup whether it has run there. */
  standsStill: z.boolean().optional(),
  /** Absent for a VM without disks. */
  disks: z.array(sessionDisk).min(1).max(DISKS_MAX).optional(),
  /** By their index here pages are referred to them; the replacements apply to their paths. */
  pageDisks: z.array(pageDisk).max(PAGE_DISKS_MAX).optional(),
  standby: standbySpec,
});
export type SessionMessage = z.infer<typeof sessionMessage>;

export const controlMessage = z.discriminatedUnion('type', [
  sessionMessage,
  z.strictObject({
    type: z.literal('session-ready'),
    bulkPort: z.number().int().min(1).max(65535),
    /** Of each disk's journal there; what one epoch logs has to fit in. Absent without disks. */
    journalBytes: count.optional(),
    /** Those of the session's that are here, too: their indexes. */
    pageDisks: z.array(count).max(PAGE_DISKS_MAX).optional(),
    /** With the session's: that checkpoint fits, and is kept until nothing is to come any more. */
    fallback: z.strictObject({ epoch: count, takenAt: text }).optional(),
  }),
  z.strictObject({
    type: z.literal('session-refused'),
    code: text,
    message: text,
    cure: text.optional(),
    term: count.optional(),
  }),
  z.strictObject({ type: z.literal('heartbeat'), sequence: count }),
  /** Guest shut down or QEMU was told to quit: the VM ended, no takeover. */
  z.strictObject({ type: z.literal('vm-ended'), reason: text }),
  /** QEMU died under the primary: take over now. */
  z.strictObject({ type: z.literal('vm-lost'), reason: text }),
  z.strictObject({ type: z.literal('detach') }),
  /** Answer to `detach`: the checkpoint is dropped, no takeover will come. */
  z.strictObject({ type: z.literal('detached') }),
  /** The primary gives up this session but lives, its output held, and will open another: don't take over yet. */
  z.strictObject({ type: z.literal('reconnecting') }),
  /** The VM is stopped, `epoch` is its last checkpoint, acknowledged: run it. */
  z.strictObject({
    type: z.literal('switchover'),
    epoch: count,
    /** It lacks pages, which come by the page stream; a link that is cut meanwhile is waited for so long. */
    pagesFollow: z.strictObject({ waitMs: z.number().nonnegative() }).optional(),
  }),
  z.strictObject({
    type: z.literal('took-over'),
    term: count,
    epoch: count,
    resumeMs: z.number(),
  }),
  z.strictObject({ type: z.literal('takeover-failed'), code: text, message: text }),
  z.strictObject({ type: z.literal('failure'), code: text, message: text }),
  /** With `qemuEngine`: QEMU has the bulk connection, and reads its migration from it. */
  z.strictObject({ type: z.literal('stream-taken') }),
  ...enquiryMessages,
]);
export type ControlMessage = z.infer<typeof controlMessage>;

/**
 * A schema is compiled when it is first used, which takes a millisecond or two: too long for messages that come
 * but once, when the VM stands still. So they are all read once before.
 */
export const warmUpMessages = (): void => {
  const once: readonly ControlMessage[] = [
    { type: 'heartbeat', sequence: 0 },
    { type: 'switchover', epoch: 0 },
    { type: 'took-over', term: 0, epoch: 0, resumeMs: 0 },
    { type: 'vm-lost', reason: '' },
    { type: 'session-refused', code: '', message: '' },
  ];
  for (const message of once) controlMessage.parse(message);
};
