/**
 * Mutual authentication by a pre-shared key, and the keys derived from it.
 *
 *   client                              server
 *     hello { versions, nonceC }   ──►
 *                                  ◄──  challenge { version, nonceS }
 *     auth { HMAC(key, "client"…) } ──►
 *                                  ◄──  welcome { HMAC(key, "server"…) }
 *
 * Afterwards every control frame carries an HMAC under the session key with a
 * direction and a sequence number, and each bulk connection shows a token
 * derived from it. Authenticated, not encrypted: the replication network is
 * assumed to be private (docs/safety.md).
 */
import { createHmac, timingSafeEqual } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { ConfigError } from '../errors.js';

export const NONCE_BYTES = 32;
export const MAC_BYTES = 32;
export const KEY_BYTES_MIN = 16;

export type Direction = 'client' | 'server';

const hmac = (key: Uint8Array, ...parts: readonly (string | Uint8Array)[]): Buffer => {
  const mac = createHmac('sha256', key);
  for (const part of parts) {
    const bytes = typeof part === 'string' ? Buffer.from(part) : part;
    const length = Buffer.alloc(4);
    length.writeUInt32BE(bytes.length);
    mac.update(length).update(bytes); // lengths make the concatenation unambiguous
  }
  return mac.digest();
};

export interface HandshakeTranscript {
  readonly version: number;
  readonly clientNonce: Uint8Array;
  readonly serverNonce: Uint8Array;
}

/** What one side shows to prove that it holds the key. 32 bytes. */
export const proof = (key: Uint8Array, side: Direction, transcript: HandshakeTranscript): Buffer =>
  hmac(
    key,
    `holdfast proof ${side}`,
    String(transcript.version),
    transcript.clientNonce,
    transcript.serverNonce,
  );

/** The session's own key; differs for every connection. 32 bytes. */
export const deriveSessionKey = (key: Uint8Array, transcript: HandshakeTranscript): Buffer =>
  hmac(key, 'holdfast session', String(transcript.version), transcript.clientNonce, transcript.serverNonce);

/** Token that binds a bulk connection to its control session. 32 bytes. */
export const deriveBulkToken = (sessionKey: Uint8Array): Buffer => hmac(sessionKey, 'holdfast bulk');

/** MAC of one control frame. 32 bytes. */
export const frameMac = (
  sessionKey: Uint8Array,
  from: Direction,
  sequence: bigint,
  body: Uint8Array,
): Buffer => hmac(sessionKey, `holdfast frame ${from}`, sequence.toString(), body);

export const sameMac = (a: Uint8Array, b: Uint8Array): boolean =>
  a.length === b.length && timingSafeEqual(a, b);

/**
 * Reads a pre-shared key from a file; a trailing newline is not part of it.
 * @throws ConfigError if the file can't be read or holds fewer than 16 bytes.
 */
export const readKeyFile = async (path: string): Promise<Buffer> => {
  let bytes: Buffer;
  try {
    bytes = await readFile(path);
  } catch (cause) {
    throw new ConfigError(`key-file: cannot read ${path}: ${(cause as Error).message}`, {
      cause,
      cure: 'Make a key with `head -c 32 /dev/urandom | base64 > holdfast.key` and copy it to both hosts.',
    });
  }
  let end = bytes.length;
  while (end > 0 && (bytes[end - 1] === 0x0a || bytes[end - 1] === 0x0d)) end -= 1;
  if (end < KEY_BYTES_MIN) {
    throw new ConfigError(`key-file: ${path} holds ${end} bytes, at least ${KEY_BYTES_MIN} are needed`, {
      cure: 'Make a key with `head -c 32 /dev/urandom | base64 > holdfast.key` and copy it to both hosts.',
    });
  }
  return bytes.subarray(0, end);
};
