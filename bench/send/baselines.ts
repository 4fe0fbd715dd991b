/**
 * What Holdfast is measured against, on the same path and in turns with it:
 * iperf3, which sends a buffer that stays in the cache and is looked at by
 * nobody, and a plain Node program that does the same work.
 */
import type { Lab } from '../../test/lab/lab.js';
import { replicationLinks } from '../../test/lab/network.js';
import type { BenchResult } from '../report.js';
import { runIperf, startIperfServer } from './iperf.js';
import type { Size } from './plan.js';
import type { NodeCommand, NodeSentMessage } from './protocol.js';
import { megabyte, pageBytes } from './region.js';
import { Role } from './role.js';
import { type Sample, summarise } from './samples.js';

/** Long enough that the start of the connection does not show. */
const STEADY_BYTES = 1024 * 1024 * 1024;

interface Baseline {
  readonly name: string;
  readonly params: BenchResult['params'];
  readonly measure: (seed: number) => Promise<Sample>;
  readonly samples: Sample[];
}

export class Baselines {
  readonly #all: readonly Baseline[];

  private constructor(all: readonly Baseline[]) {
    this.#all = all;
  }

  /** The baselines of one size; `node` is absent where they run beside several streams, which it has not. */
  static of(
    parts: { readonly lab: Lab; readonly node: NodePair | undefined },
    size: Size,
    streams: number,
    runLengths: readonly number[],
    wants: (name: string) => boolean,
  ): Baselines {
    const all = [
      ...iperfBaselines(parts.lab, size, streams),
      ...(parts.node === undefined ? [] : nodeBaselines(parts.node, size, runLengths)),
    ];
    return new Baselines(all.filter(({ name }) => wants(name)));
  }

  get empty(): boolean {
    return this.#all.length === 0;
  }

  /** One of each. */
  async round(seed: number): Promise<void> {
    for (const { measure, samples } of this.#all) samples.push(await measure(seed));
  }

  results(): BenchResult[] {
    return this.#all
      .filter(({ samples }) => samples.length > 0)
      .map(({ name, params, samples }) => ({ name, params, metrics: summarise(samples) }));
  }
}

const iperfBaselines = (lab: Lab, { sizeMiB, pages }: Size, streams: number): Baseline[] => {
  const measure = (bytes: number, scaledTo: number, zeroCopy: boolean) => async (): Promise<Sample> => {
    const address = replicationLinks.aToB.to.address;
    const run = await runIperf(lab.host('a'), address, { bytes, streams, zeroCopy });
    const scale = scaledTo / bytes;
    return {
      sendMs: run.sendMs * scale,
      ackMs: run.receivedMs * scale,
      throughputGbPerS: bytes / run.receivedMs / 1e6,
      // Of a short run it is mostly the program's start, so only a long one says anything.
      ...(bytes === STEADY_BYTES ? { senderProcessCpuMsPerMb: run.senderCpuMs / (bytes / megabyte) } : {}),
    };
  };
  const bytes = pages * pageBytes;
  const one = (tool: string, name: string, zeroCopy: boolean, length: number): Baseline => ({
    name: `${name}-${sizeMiB}mib-streams${streams}`,
    params: { tool, sizeMiB, streams, scaled: length !== bytes },
    measure: measure(length, bytes, zeroCopy),
    samples: [],
  });
  return [
    one('iperf3', 'iperf3', false, bytes),
    one('iperf3 -Z', 'iperf3-z', true, bytes),
    one('iperf3, 1 GiB', 'iperf3-steady', false, STEADY_BYTES),
    one('iperf3 -Z, 1 GiB', 'iperf3-z-steady', true, STEADY_BYTES),
  ];
};

const nodeBaselines = (node: NodePair, size: Size, runLengths: readonly number[]): Baseline[] =>
  (['awaited', 'sync'] as const).flatMap((reads) =>
    runLengths
      .filter((runPages) => runPages <= size.pages)
      .map((runPages) => ({
        name: `node-${reads}-run${runPages}-${size.sizeMiB}mib`,
        params: { tool: `socket.write, reads ${reads}`, runPages, sizeMiB: size.sizeMiB, streams: 1 },
        measure: (seed: number) => node.send({ do: 'send', reads, runPages, pages: size.pages, seed }),
        samples: [],
      })),
  );

/** Starts what the iperf3 baselines connect to; it lives as long as the lab. */
export const serveIperf = async (lab: Lab): Promise<void> => {
  await startIperfServer(lab.host('b'), replicationLinks.aToB.to.address);
};

/** The two processes of node-role.ts, and their one connection. */
export class NodePair {
  readonly #client: Role;
  readonly #server: Role;

  private constructor(client: Role, server: Role) {
    this.#client = client;
    this.#server = server;
  }

  static async start(lab: Lab, file: string, regionBytes: number): Promise<NodePair> {
    const address = replicationLinks.aToB.to.address;
    const server = await Role.start(lab.host('b'), 'node-role.js', ['server', address]);
    const { port } = await server.next<{ event: 'listening'; port: number }>('listening');
    const args = ['client', address, String(port), file, String(regionBytes / pageBytes)];
    const client = await Role.start(lab.host('a'), 'node-role.js', args);
    await client.next('connected');
    return new NodePair(client, server);
  }

  async send(command: NodeCommand): Promise<Sample> {
    this.#server.forget();
    const sent = await this.#client.ask<NodeSentMessage>(command, 'sent');
    const received = await this.#server.next<{ event: 'received'; processCpuMs: number }>('received');
    const bytes = command.pages * pageBytes;
    const megabytes = bytes / megabyte;
    return {
      sendMs: sent.sendMs,
      ackMs: sent.ackMs,
      throughputGbPerS: bytes / sent.ackMs / 1e6,
      senderProcessCpuMsPerMb: sent.processCpuMs / megabytes,
      receiverProcessCpuMsPerMb: received.processCpuMs / megabytes,
    };
  }
}
