import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { checkDiskServer } from '../../lib/doctor/disk-check.js';
import { UnsupportedHostError } from '../../lib/errors.js';

const dir = mkdtempSync(join(tmpdir(), 'holdfast-doctor-'));
afterAll(() => rmSync(dir, { recursive: true, force: true }));

describe('doctor: disk server', () => {
  it('loads the plugin into the nbdkit that is there', async () => {
    expect(await checkDiskServer()).toMatchObject({
      status: 'ok',
      found: expect.stringMatching(/^nbdkit 1\.\d+\.\d+ loads holdfast-disk$/),
    });
  });

  it('warns where nbdkit is missing', async () => {
    const check = await checkDiskServer(join(dir, 'none'));
    expect(check).toMatchObject({ status: 'warn', found: expect.stringContaining('there is no') });
    expect(check.cure).toMatch(/writable disks.*apt-get install nbdkit/);
  });

  it('warns of one that is too old', async () => {
    const old = join(dir, 'old');
    writeFileSync(old, '#!/bin/sh\necho nbdkit 1.30.9\n', { mode: 0o755 });
    const check = await checkDiskServer(old);
    expect(check).toMatchObject({ status: 'warn', found: 'nbdkit 1.30.9' });
    expect(check.cure).toContain('1.32');
  });

  it('warns where the plugin is missing, or is none', async () => {
    const missing = await checkDiskServer('nbdkit', () => {
      throw new UnsupportedHostError('not built', { cure: 'Build it.' });
    });
    expect(missing).toMatchObject({
      status: 'warn',
      found: 'not built',
      cure: expect.stringContaining('Build'),
    });
    const broken = join(dir, 'broken.so');
    writeFileSync(broken, 'no plugin');
    expect(await checkDiskServer('nbdkit', () => broken)).toMatchObject({
      status: 'warn',
      found: expect.stringMatching(/does not load .*broken\.so: /),
    });
  });
});
