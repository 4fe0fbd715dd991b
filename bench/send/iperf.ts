/** iperf3 on the same path: how fast this kernel moves bytes that nobody has to look for. */
import type { LabHost } from '../../test/lab/lab.js';
import type { LabProcess } from '../../test/lab/process.js';
import { waitFor } from '../../test/lab/wait.js';

const IPERF_PORT = 5201;
/** The server still cleans up after a client that has ended. */
const TRIES = 20;

export interface IperfRun {
  /** From its first byte to its last handed to the kernel. */
  readonly sendMs: number;
  /** For all of the bytes at the rate at which the server received. */
  readonly receivedMs: number;
  /** Its own account (rusage of the client, over the whole run). */
  readonly senderCpuMs: number;
}

export interface IperfOptions {
  readonly bytes: number;
  readonly streams: number;
  /** -Z: sendfile from a temporary file. */
  readonly zeroCopy: boolean;
}

interface IperfSum {
  readonly seconds: number;
  readonly bytes: number;
}

interface IperfReport {
  readonly error?: string;
  readonly end: {
    readonly sum_sent: IperfSum;
    readonly sum_received: IperfSum;
    readonly cpu_utilization_percent: { readonly host_total: number };
  };
}

export const startIperfServer = async (host: LabHost, address: string): Promise<LabProcess> => {
  const args = ['-s', '-B', address, '-p', String(IPERF_PORT), '--forceflush'];
  const server = await host.spawn('iperf3', args);
  await waitFor('iperf3 to listen', () => server.stdout.includes('Server listening'));
  return server;
};

/**
 * One run of the client. The server stops reading when the client says that it
 * is done, with bytes still under way, and reports what it had by then and for
 * how long: so its rate is what can be relied on, not its time.
 */
export const runIperf = async (host: LabHost, address: string, options: IperfOptions): Promise<IperfRun> => {
  const { bytes, streams, zeroCopy } = options;
  const args = ['-c', address, '-p', String(IPERF_PORT), '-n', String(bytes), '--json'];
  if (streams > 1) args.push('-P', String(streams));
  if (zeroCopy) args.push('-Z');
  const report = await waitFor(
    'iperf3 to run',
    async () => {
      const { stdout } = await host.exec('iperf3', args, { check: false });
      const parsed = JSON.parse(stdout) as IperfReport;
      if (parsed.error === undefined) return parsed;
      if (!parsed.error.includes('busy')) throw new Error(`iperf3: ${parsed.error}`);
      return undefined;
    },
    { timeoutMs: TRIES * 100, intervalMs: 100 },
  );
  const { sum_sent: sent, sum_received: received, cpu_utilization_percent: cpu } = report.end;
  return {
    sendMs: (sent.seconds * 1e3 * bytes) / sent.bytes,
    receivedMs: (received.seconds * 1e3 * bytes) / received.bytes,
    senderCpuMs: (cpu.host_total / 100) * sent.seconds * 1e3,
  };
};
