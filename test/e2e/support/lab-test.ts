/** For test files that need a lab of their own in each test. */

import { afterEach, expect } from 'vitest';
import { Lab } from '../../lab/lab.js';
import { remainsOf } from './lab.js';

/** @returns what makes the lab of a test. It is closed when the test has ended, however, and must leave nothing. */
export const labPerTest = (tag: string): (() => Promise<Lab>) => {
  let lab: Lab | undefined;
  afterEach(async () => {
    await lab?.close();
    if (lab !== undefined) expect(remainsOf(lab)).toEqual([]);
    lab = undefined;
  });
  return async () => {
    lab = await Lab.create({ tag });
    return lab;
  };
};
