/**
 * Sends a file, or shared memory, page by page to another process:
 *
 *   send-pages receive HOST:PORT FILE BYTES          creates FILE, prints the token
 *   send-pages send    HOST:PORT FILE BYTES TOKEN    sends FILE in parts of 4 MiB
 */
import { HoldfastError, openReceiver, openSender } from 'holdfast';

const [role, address = '', file = '', bytes = '', token = ''] = process.argv.slice(2);
const colon = address.lastIndexOf(':');
const host = address.slice(0, colon);
const port = Number(address.slice(colon + 1));
const regionBytes = Number(bytes);
const stop = new AbortController();
for (const signal of ['SIGINT', 'SIGTERM']) process.once(signal, () => stop.abort());

const receive = async (): Promise<void> => {
  await using receiver = await openReceiver({
    listen: { host, port },
    file,
    regionBytes,
    once: true,
    signal: stop.signal,
  });
  console.log(`port ${receiver.port}, token ${Buffer.from(receiver.token).toString('hex')}`);
  for await (const { id, pages, receiveMs, metadata, applied } of receiver) {
    await applied; // the file shows this transfer until the loop asks for the next one
    console.log(`transfer ${id}: ${pages} pages in ${receiveMs.toFixed(1)} ms, "${Buffer.from(metadata)}"`);
  }
};

const send = async (): Promise<void> => {
  await using sender = await openSender({
    to: { host, port, token: Buffer.from(token, 'hex') },
    file,
    regionBytes,
    signal: stop.signal,
  });
  const regionPages = regionBytes / 4096;
  for (let firstPage = 0; firstPage < regionPages; firstPage += 1024) {
    const pages = Math.min(1024, regionPages - firstPage);
    const metadata = Buffer.from(`from page ${firstPage}`);
    // Settles when the receiver has all of it; until then these pages must not change.
    const { ackMs, zeroPages, strategy } = await sender.send([{ firstPage, pages }], { metadata });
    console.log(`${pages} pages, ${zeroPages} of them zero: ${ackMs.toFixed(1)} ms by ${strategy}`);
  }
};

try {
  await (role === 'receive' ? receive() : send());
} catch (error) {
  if (!(error instanceof HoldfastError)) throw error;
  console.error(`${error.code}: ${error.message}`, error.cure ?? '');
  process.exitCode = error.exitCode;
}
