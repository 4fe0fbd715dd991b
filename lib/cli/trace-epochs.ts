/** `holdfast primary --trace`: the trace beside the epochs, and its file at the end. */
import { toHoldfastError } from '../errors.js';
import type { EpochReport } from '../primary/epoch-report.js';
import type { Primary } from '../primary/primary.js';
import { EpochTrace } from '../trace/epoch-trace.js';
import { vcpuThreads } from '../trace/threads.js';
import { writeTrace } from '../trace/write.js';
import type { CommandConsole } from './console.js';

/**
 * Records until the returned function is called, which writes the file. Protection
 * goes on whatever becomes of the trace: what fails is a warning.
 */
export const traceEpochs = async (
  primary: Primary,
  path: string,
  console: CommandConsole,
): Promise<() => Promise<void>> => {
  const { vm } = primary.status();
  let trace: EpochTrace;
  try {
    const title = `the epochs of ${vm.name === '' ? `process ${vm.pid}` : vm.name}`;
    trace = await EpochTrace.start({ title, pid: vm.pid, threads: vcpuThreads(primary.vcpuThreads) });
  } catch (error) {
    console.warn(toHoldfastError(error, '--trace'));
    return async () => {};
  }
  const onEpoch = (report: EpochReport): void => trace.add(report);
  primary.on('epoch', onEpoch);
  return async () => {
    primary.off('epoch', onEpoch);
    try {
      await writeTrace(await trace.finish(), path);
      console.tell(`trace of the epochs: ${path}`, { event: 'trace-written', path });
    } catch (error) {
      console.warn(toHoldfastError(error, '--trace'));
    }
  };
};
