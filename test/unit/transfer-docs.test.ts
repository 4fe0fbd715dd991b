/** docs/transfer.md says what the code does: the example, which runs, and the options. */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { text } from 'node:stream/consumers';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';
import { receiverSettings, senderSettings } from '../../lib/transfer/options.js';

const inRoot = (path: string): string => fileURLToPath(new URL(`../../${path}`, import.meta.url));
const page = readFileSync(inRoot('docs/transfer.md'), 'utf8');

const run = (...argv: readonly string[]): ChildProcess =>
  spawn(process.execPath, [inRoot('dist/docs/examples/send-pages.js'), ...argv], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });

describe('docs/transfer.md', () => {
  it('shows the example as it is', () => {
    const example = readFileSync(inRoot('docs/examples/send-pages.ts'), 'utf8');
    expect(page).toContain(`\`\`\`ts\n${example}\`\`\`\n`);
  });

  it('shows an example that runs as it says', async () => {
    const directory = mkdtempSync('/dev/shm/holdfast-send-pages-');
    const [data, copy] = [join(directory, 'data'), join(directory, 'copy')];
    const bytes = 5000 * 4096;
    const content = Buffer.alloc(bytes, 'pages of all kinds ');
    content.fill(0, 4096, 8192);
    writeFileSync(data, content);
    const receiver = run('receive', '127.0.0.1:0', copy, String(bytes));
    try {
      const lines: string[] = [];
      const output = createInterface(receiver.stdout!);
      output.on('line', (line) => lines.push(line));
      await once(output, 'line');
      const [, port = '', token = ''] = /^port (\d+), token ([0-9a-f]{64})$/.exec(lines[0] ?? '') ?? [];
      const sender = run('send', `127.0.0.1:${port}`, data, String(bytes), token);
      const [sent, [status], [receiverStatus]] = await Promise.all([
        text(sender.stdout!),
        once(sender, 'close'),
        once(receiver, 'close'),
      ]);
      expect({ status, receiverStatus }).toEqual({ status: 0, receiverStatus: 0 });
      expect(sent).toMatch(/^1024 pages, 1 of them zero: [\d.]+ ms by [a-z]+$/m);
      expect(lines.slice(1).map((line) => line.replace(/[\d.]+ ms/, 'N ms'))).toEqual([
        'transfer 1: 1023 pages in N ms, "from page 0"',
        'transfer 2: 1024 pages in N ms, "from page 1024"',
        'transfer 3: 1024 pages in N ms, "from page 2048"',
        'transfer 4: 1024 pages in N ms, "from page 3072"',
        'transfer 5: 904 pages in N ms, "from page 4096"',
      ]);
      expect(Buffer.compare(readFileSync(copy), content)).toBe(0);
    } finally {
      receiver.kill('SIGKILL');
      rmSync(directory, { recursive: true, force: true });
    }
  }, 30_000);

  it.each([
    ['Sender', senderSettings.shape],
    ['Receiver', receiverSettings.shape],
  ])('has every option: %s', (heading, shape) => {
    const section = page.split(`\n## ${heading}\n`)[1]?.split('\n## ')[0] ?? '';
    for (const option of Object.keys(shape)) expect(section).toContain(`\`${option}\``);
  });
});
