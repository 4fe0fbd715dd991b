/** The policies by their names, for whoever lets an operator choose. */
import { type AutoPolicyOptions, autoPolicy } from './auto-policy.js';
import { fixedPolicy } from './fixed-policy.js';
import { mpPolicy } from './mp-policy.js';
import type { MigrationPolicy } from './policy.js';

export const migrationPolicyNames = ['fixed', 'mp', 'auto'] as const;
export type MigrationPolicyName = (typeof migrationPolicyNames)[number];

/** Each policy takes of the options what concerns it. */
export type MigrationPolicyOptions = AutoPolicyOptions;

export const migrationPolicy = (
  name: MigrationPolicyName,
  options: MigrationPolicyOptions = {},
): MigrationPolicy => {
  switch (name) {
    case 'fixed':
      return fixedPolicy();
    case 'mp':
      return mpPolicy(options);
    case 'auto':
      return autoPolicy(options);
  }
};
