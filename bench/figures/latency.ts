/** Charts and tables of the suite `latency`. */
import type { BenchResult } from '../report.js';
import { barChart, pivotBarChart, present } from './chart.js';
import type { SuiteFigures } from './suites.js';
import { presentTables, tableOfAny } from './table.js';

const isOf =
  (probe: string) =>
  ({ params }: BenchResult): boolean =>
    params.probe === probe;

/** `ping-relay-25ms` → `relay-25ms`. */
const setUpOf = ({ name, params }: BenchResult): string => name.slice(`${params.probe}-`.length);

const isSingle = (result: BenchResult): boolean => isOf('ping')(result) || isOf('redis-1')(result);

const probeInWords = ({ params }: BenchResult): string =>
  params.probe === 'ping' ? 'ping' : 'redis, one client';

export const latencyFigures: SuiteFigures = {
  title: 'Latency: what a client notices',
  about:
    'A client on the LAN of a 512 MB Linux guest on TCG: ping, redis with one client and one request under way, and redis with 50 clients and 16 requests under way each. The same guest in turns, unprotected and protected; relay and filter-buffer need guests of their own, since the one is attached to the network through a relay and the other to a tap. By the clock: an epoch every so many milliseconds. By the load: an epoch begins when output waits, at the earliest some time after the one before.',
  charts: (report) =>
    present([
      pivotBarChart(report, {
        title: 'Delay of a reply, median',
        note: 'From request to reply, at the client. By the clock, a reply waits for half an interval on average, the pause and the acknowledgement; by the load, for pause and acknowledgement.',
        axis: { label: 'round trip, ms' },
        where: isSingle,
        group: setUpOf,
        series: probeInWords,
        metric: 'roundTripMsP50',
      }),
      pivotBarChart(report, {
        title: 'Delay of a reply, 99th percentile',
        axis: { label: 'round trip, ms' },
        where: isSingle,
        group: setUpOf,
        series: probeInWords,
        metric: 'roundTripMsP99',
      }),
      barChart(report, {
        title: 'Throughput of a busy server',
        note: 'Replies per second to 50 clients. A client with all its requests under way waits for the output to be released, so the delay costs throughput, too, and not the pause alone.',
        axis: { label: 'replies per second (median of the turns)' },
        where: isOf('redis-50'),
        group: setUpOf,
        series: { replies: 'repliesPerSP50' },
      }),
    ]),
  tables: (report) =>
    presentTables(
      (
        [
          ['ping', 'Ping'],
          ['redis-1', 'Redis, one client'],
          ['redis-50', 'Redis, 50 clients, pipelined'],
        ] as const
      ).map(([probe, title]) =>
        tableOfAny(report, report.results.filter(isOf(probe)), { title, casesAsColumns: true }),
      ),
    ),
};
