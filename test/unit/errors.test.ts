/** Errors of the addon, of Node and of our own, as one family. */
import { describe, expect, it } from 'vitest';
import { DiskError, NoSpaceError, SystemError, toHoldfastError } from '../../lib/errors.js';

const thrown = (code: string): Error => Object.assign(new Error('writing /run/x'), { code });

describe('toHoldfastError', () => {
  it.each(['ENOSPC', 'EDQUOT', 'HOLDFAST_E_NO_SPACE'])('%s: something is full, whoever says so', (code) => {
    const error = toHoldfastError(thrown(code), 'a record');
    expect(error).toBeInstanceOf(NoSpaceError);
    expect(error).toMatchObject({ exitCode: 7, message: 'a record: writing /run/x' });
    expect(error.cure).toMatch(/^Make room/);
  });

  it('keeps what is one already, and takes what nobody named for a system call', () => {
    const disk = new DiskError('the image');
    expect(toHoldfastError(disk, 'whatever')).toBe(disk);
    expect(toHoldfastError(thrown('EACCES'))).toBeInstanceOf(SystemError);
    expect(toHoldfastError('a word').message).toBe('a word');
  });
});
