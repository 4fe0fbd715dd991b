/** Options of both ends of a page transfer, with their defaults and limits in one place. */
import { z } from 'zod';
import { checkSettings } from '../primary/options.js';
import { senderStrategies } from '../send/sender-choice.js';

export const TOKEN_BYTES = 32;
/** Metadata of one transfer. */
export const METADATA_BYTES_MAX = 1 << 20;
const PAGE_BYTES_MIN = 4096;
const PAGE_BYTES_MAX = 4 << 20;
/** Page numbers and run lengths are 32 bits in a run table, also when all runs are joined. */
const REGION_PAGES_MAX = 2 ** 32 - 1;

const isPowerOfTwo = (value: number): boolean => Number.isInteger(Math.log2(value));

const pageSize = z
  .number()
  .int()
  .min(PAGE_BYTES_MIN)
  .max(PAGE_BYTES_MAX)
  .refine(isPowerOfTwo, 'must be a power of two')
  .default(4096);
const wholeBytes = z.number().int().min(0).max(Number.MAX_SAFE_INTEGER);
const port = z.number().int().max(65_535);
const fd = z.number().int().min(0).max(0x7fff_ffff);
const token = z
  .instanceof(Uint8Array)
  .refine((bytes) => bytes.length === TOKEN_BYTES, `must be ${TOKEN_BYTES} bytes`);

/** What both ends have in common. */
const region = {
  /** Bytes of the region: a multiple of `pageSize`. */
  regionBytes: wholeBytes.min(PAGE_BYTES_MIN),
  /** Bytes, a power of two: 4096 up to 4 MiB; on hugetlbfs that file system's. */
  pageSize,
  /**
   * A digest (xxh3) of every transfer is computed by both ends and compared, unless
   * one of them says false: a transfer is then as safe as TCP's checksums make it.
   */
  verify: z.boolean().default(true),
};

const isWholePages = (value: { readonly regionBytes: number; readonly pageSize: number }): boolean =>
  value.regionBytes % value.pageSize === 0 && value.regionBytes / value.pageSize <= REGION_PAGES_MAX;
const wholePages = {
  path: ['regionBytes'],
  error: `must be a multiple of pageSize, and at most ${REGION_PAGES_MAX} pages`,
};

export const senderSettings = z
  .strictObject({
    to: z.union(
      [
        z.strictObject({ host: z.string().min(1), port: port.min(1), token: token.optional() }),
        z.strictObject({ fd }),
      ],
      {
        error: `must be { host, port, token? } with a token of ${TOKEN_BYTES} bytes, or { fd }`,
      },
    ),
    file: z.union([z.string().min(1), fd], { error: 'must be a path or a descriptor' }),
    fileOffset: wholeBytes.default(0),
    ...region,
    strategy: z.enum(['auto', ...senderStrategies]).default('auto'),
    streams: z.number().int().min(1).max(16).default(1),
    staged: z.boolean().default(false),
    stagingBytesMax: wholeBytes.min(PAGE_BYTES_MIN).optional(),
    firstId: z.number().int().min(1).max(Number.MAX_SAFE_INTEGER).default(1),
    timeoutMs: z.number().int().min(1).max(600_000).default(5_000),
    signal: z.instanceof(AbortSignal).optional(),
  })
  .refine(isWholePages, wholePages)
  .refine((value) => value.fileOffset % value.pageSize === 0, {
    path: ['fileOffset'],
    error: 'must be a multiple of pageSize',
  })
  .refine((value) => !('fd' in value.to) || value.streams === 1, {
    path: ['streams'],
    error: 'must be 1 on a descriptor',
  });

export const receiverSettings = z
  .strictObject({
    listen: z.union(
      [z.strictObject({ host: z.string().min(1), port: port.min(0).default(0) }), z.strictObject({ fd })],
      {
        error: 'must be { host, port? } or { fd }',
      },
    ),
    file: z.string().min(1),
    ...region,
    token: token.optional(),
    aheadMax: z.number().int().min(0).max(256).default(0),
    once: z.boolean().optional(),
    signal: z.instanceof(AbortSignal).optional(),
  })
  .refine(isWholePages, wholePages);

export type SenderSettings = z.output<typeof senderSettings>;
export type ReceiverSettings = z.output<typeof receiverSettings>;

export const checkSenderSettings = (value: unknown): SenderSettings =>
  checkSettings(senderSettings, value, 'sender options');

export const checkReceiverSettings = (value: unknown): ReceiverSettings =>
  checkSettings(receiverSettings, value, 'receiver options');
