/** What becomes of the old QEMU when the new one runs the VM. */
import { describe, expect, it } from 'vitest';
import { toHoldfastError } from '../../lib/errors.js';
import { settle } from '../../lib/handoff/settle.js';

const settled = async (failing: readonly string[]) => {
  const done: string[] = [];
  const warnings: string[] = [];
  const step = (name: string) => async (): Promise<void> => {
    if (failing.includes(name)) throw new Error(`${name} failed`);
    done.push(name);
  };
  const ended = await settle(
    {
      tell: ['records', 'relays', 'disks'].map(step),
      meanwhile: ['target', 'save'].map(step),
      end: ['kill', 'taps', 'names'].map(step),
    },
    { pid: 4187 },
    (error) => void warnings.push(toHoldfastError(error).message),
  );
  return { ended, done, warnings };
};

describe('when the new QEMU runs', () => {
  it('ends the old one once everybody knows', async () => {
    expect(await settled([])).toEqual({
      ended: true,
      done: ['records', 'relays', 'disks', 'target', 'save', 'kill', 'taps', 'names'],
      warnings: [],
    });
  });

  it.each(['records', 'relays', 'disks'])('leaves it, stopped, when the %s were not told', async (name) => {
    const { ended, done, warnings } = await settled([name]);
    expect(ended).toBe(false);
    expect(done).toEqual(['records', 'relays', 'disks', 'target', 'save'].filter((each) => each !== name));
    expect(warnings).toEqual([expect.stringContaining(`${name} failed`)]);
    expect(warnings[0]).toContain('process 4187) was left, stopped');
  });

  it('ends it whatever else fails', async () => {
    const { ended, done, warnings } = await settled(['target', 'taps']);
    expect(ended).toBe(true);
    expect(done).toEqual(['records', 'relays', 'disks', 'save', 'kill', 'names']);
    expect(warnings).toEqual(['target failed', 'taps failed']);
  });
});
