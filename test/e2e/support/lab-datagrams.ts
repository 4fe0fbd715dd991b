/**
 * Sees what the guest sends: numbered datagrams, of which none may leave before its time. A program, since
 * it must live in the client's namespace: `node lab-datagrams.js ADDRESS PORT`.
 *
 * The guest's syslogd sends `…: 17`; a host sends `marker NAME`, to tell what arrived before from what
 * arrived after. Standard output: one JSON object per line, in the order of arrival.
 */

import { createSocket } from 'node:dgram';

const print = (message: object): void => {
  process.stdout.write(`${JSON.stringify(message)}\n`);
};

const socket = createSocket('udp4');
socket.on('message', (data) => {
  const text = data.toString('utf8').trim();
  const marker = /^marker (\w+)$/.exec(text)?.[1];
  const number = /: (\d+)$/.exec(text)?.[1];
  if (marker !== undefined) print({ event: 'marker', name: marker });
  else if (number !== undefined) print({ event: 'datagram', number: Number(number) });
});
socket.bind(Number(process.argv[3]), process.argv[2], () => print({ event: 'listening' }));
process.stdin.resume().on('end', () => process.exit(0));
