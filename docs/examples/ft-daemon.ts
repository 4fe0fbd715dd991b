/**
 * A fault tolerance daemon for one VM, in one file:
 *
 *   ft-daemon primary HOST:PORT KEYFILE QMP-SOCKET    on the host that runs the VM
 *   ft-daemon backup  HOST:PORT KEYFILE               on the host that shall take over
 */
import { Backup, describeOutcome, HoldfastError, outcomeError, Primary, readKeyFile } from 'holdfast';

const [role, address = '', keyFile = '', qmp = ''] = process.argv.slice(2);
const stop = new AbortController();
for (const signal of ['SIGINT', 'SIGTERM']) process.once(signal, () => stop.abort());

const protect = async (key: Uint8Array): Promise<void> => {
  await using primary = await Primary.start({ backup: address, qmp, key, signal: stop.signal });
  await primary.protectedOnce();
  console.log(`${primary.vmId} is protected onto ${address}`);
  for await (const { epoch, pauseMs, dirtyPages } of primary.epochs()) {
    if (epoch % 100 === 0)
      console.log(`epoch ${epoch}: paused ${pauseMs.toFixed(1)} ms, ${dirtyPages} pages`);
  }
  const outcome = await primary.ended;
  console.log(describeOutcome(outcome));
  const error = outcomeError(outcome);
  if (error !== undefined) throw error;
};

const stand = async (key: Uint8Array): Promise<void> => {
  await using backup = await Backup.start({ listen: address, key, signal: stop.signal });
  console.log(`waiting on port ${backup.port}`);
  backup.on('phase', ({ phase, reason }) => console.log(phase, reason ?? ''));
  backup.on('took-over', (report) => console.log(`the VM runs here: QMP ${report.qmp}`, report));
  const outcome = await backup.ended; // after a takeover: when the VM has ended, or at a signal
  console.log(outcome.kind);
};

try {
  const key = await readKeyFile(keyFile);
  await (role === 'backup' ? stand(key) : protect(key));
} catch (error) {
  if (!(error instanceof HoldfastError)) throw error;
  console.error(`${error.code}: ${error.message}`, error.cure ?? '');
  process.exitCode = error.exitCode;
}
