/** A limit of the replication link, the same both ways: a token bucket at the sending end of each direction. */
import type { Lab } from './lab.js';
import { replicationLinks } from './network.js';

/** More than the largest packet that a veth carries in one piece, and a small part of any transfer. */
const BURST = '256kb';
/** What may wait to be sent: so much that one TCP connection keeps the link busy. */
const LATENCY = '20ms';

/** undefined: no limit. */
export const limitLink = async (lab: Lab, mbitPerS: number | undefined): Promise<void> => {
  for (const { host, link } of Object.values(replicationLinks.aToB)) {
    await lab
      .host(host)
      .exec(
        'tc',
        mbitPerS === undefined
          ? ['qdisc', 'del', 'dev', link, 'root']
          : [
              ...['qdisc', 'replace', 'dev', link, 'root', 'tbf'],
              ...['rate', `${mbitPerS}mbit`, 'burst', BURST, 'latency', LATENCY],
            ],
        { check: mbitPerS !== undefined },
      );
  }
};
