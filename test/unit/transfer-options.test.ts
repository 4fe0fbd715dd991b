/** What is wrong with an option is said by its name. */
import { describe, expect, it } from 'vitest';
import { checkReceiverSettings, checkSenderSettings } from '../../lib/transfer/options.js';

const sender = { to: { host: 'localhost', port: 1 }, file: '/dev/shm/region', regionBytes: 1 << 20 };
const receiver = { listen: { host: 'localhost' }, file: '/dev/shm/copy', regionBytes: 1 << 20 };

describe('options', () => {
  it('have defaults', () => {
    expect(checkSenderSettings(sender)).toMatchObject({
      pageSize: 4096,
      fileOffset: 0,
      strategy: 'auto',
      streams: 1,
      verify: true,
      staged: false,
      firstId: 1,
      timeoutMs: 5_000,
    });
    expect(checkReceiverSettings(receiver)).toMatchObject({
      listen: { port: 0 },
      pageSize: 4096,
      verify: true,
      aheadMax: 0,
    });
  });

  it.each([
    ['to', { to: { host: 'localhost' } }],
    ['to', { to: { host: 'localhost', port: 1, token: new Uint8Array(31) } }],
    ['to', { to: { fd: -1 } }],
    ['file', { file: '' }],
    ['regionBytes', { regionBytes: 4097 }],
    ['regionBytes', { regionBytes: 0 }],
    ['regionBytes', { regionBytes: 1 << 20, pageSize: 2 << 20 }],
    ['pageSize', { pageSize: 2048 }],
    ['pageSize', { pageSize: 4096 * 3 }],
    ['fileOffset', { fileOffset: 1 }],
    ['strategy', { strategy: 'teleport' }],
    ['streams', { streams: 17 }],
    ['streams', { to: { fd: 3 }, streams: 2 }],
    ['firstId', { firstId: 0 }],
    ['signal', { signal: {} }],
    ['streems', { streems: 1 }],
  ])('of the sender: %s', (key, wrong) => {
    expect(() => checkSenderSettings({ ...sender, ...wrong })).toThrow(
      new RegExp(`^sender options: .*${key}`),
    );
  });

  it.each([
    ['listen', { listen: {} }],
    ['listen', { listen: { fd: 3, host: 'localhost' } }],
    ['token', { token: new Uint8Array(33) }],
    ['aheadMax', { aheadMax: 257 }],
    ['file', { file: 3 }],
  ])('of the receiver: %s', (key, wrong) => {
    expect(() => checkReceiverSettings({ ...receiver, ...wrong })).toThrow(
      new RegExp(`^receiver options: .*${key}`),
    );
  });
});
