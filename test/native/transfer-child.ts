/**
 * One end of a transfer in a process of its own, to be killed or stopped:
 *
 *   transfer-child.js receiver OPTIONS   prints {port, token}, then {id} for every transfer that is in the file
 *   transfer-child.js sender OPTIONS COUNT   sends the whole region COUNT times, prints {id} for each
 *
 * OPTIONS is JSON; the last line says how it ended: {end: code or null}.
 */
import { openReceiver } from '../../lib/transfer/receiver.js';
import { openSender } from '../../lib/transfer/sender.js';

const [role, json = '{}', count = '1'] = process.argv.slice(2);
const options = JSON.parse(json);
const say = (line: object): void => void process.stdout.write(`${JSON.stringify(line)}\n`);

const receive = async (): Promise<void> => {
  await using receiver = await openReceiver(options);
  say({ port: receiver.port, token: Buffer.from(receiver.token).toString('hex') });
  for await (const { id, applied } of receiver) {
    await applied;
    say({ id });
  }
};

const send = async (): Promise<void> => {
  const token = options.to.token === undefined ? undefined : Buffer.from(options.to.token, 'hex');
  await using sender = await openSender({ ...options, to: { ...options.to, ...(token && { token }) } });
  const everything = [{ firstPage: 0, pages: options.regionBytes / 4096 }];
  for (let sent = 0; sent < Number(count); sent++) say({ id: (await sender.send(everything)).id });
};

try {
  await (role === 'receiver' ? receive() : send());
  say({ end: null });
} catch (error) {
  say({ end: (error as { code?: string }).code ?? String(error) });
}
