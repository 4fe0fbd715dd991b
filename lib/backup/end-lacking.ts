/** A VM that lacks pages which will not come cannot go on: it would wait for them for ever. */
import { toHoldfastError } from '../errors.js';
import type { Logger } from '../log.js';

/** Ends it. Never rejects: nobody is there to hear it; one that does not end is said to be left. */
export const endLacking = async (
  vm: { readonly killVm: () => Promise<void> },
  log: Pick<Logger, 'error'>,
): Promise<void> => {
  try {
    await vm.killVm();
  } catch (error) {
    const { code, message, cure } = toHoldfastError(error);
    log.error({ code, err: message, cure }, 'the VM that lacks pages was not ended, and stands still');
  }
};
