/** Holdfast's side of the suite: two processes, one per lab host, and the lanes between them. */
import type { Lab } from '../../test/lab/lab.js';
import { replicationLinks } from '../../test/lab/network.js';
import type {
  LaneOptions,
  ReceivedMessage,
  ReceiverCommand,
  SenderCommand,
  SentMessage,
  TransferShape,
} from './protocol.js';
import { megabyte, pageBytes } from './region.js';
import { Role } from './role.js';
import type { Sample } from './samples.js';

/** Of one transfer of `touch`: small enough not to inflate staging. */
const TOUCH_PAGES = 4096;

interface OpenedMessage {
  readonly event: 'opened';
  readonly port: number;
  readonly token: string;
}

interface RefusedMessage {
  readonly event: 'refused';
  readonly message: string;
}

export interface Transfer {
  readonly strategy: SentMessage['strategy'];
  readonly sample: Sample;
}

export class Transfers {
  readonly #sender: Role;
  readonly #receiver: Role;

  private constructor(sender: Role, receiver: Role) {
    this.#sender = sender;
    this.#receiver = receiver;
  }

  static async start(lab: Lab, file: string, regionBytes: number): Promise<Transfers> {
    const [sender, receiver] = await Promise.all([
      Role.start(lab.host('a'), 'transfer-role.js', ['sender', file, String(regionBytes)]),
      Role.start(lab.host('b'), 'transfer-role.js', ['receiver', lab.sharedMemoryDir, String(regionBytes)]),
    ]);
    return new Transfers(sender, receiver);
  }

  /** Settles with why not, if the sender's kernel lacks the strategy. */
  async open(lane: string, options: LaneOptions): Promise<string | undefined> {
    const host = replicationLinks.aToB.to.address;
    const listen: ReceiverCommand = { do: 'open', lane, host, verify: options.verify };
    const { port, token } = await this.#receiver.ask<OpenedMessage>(listen, 'opened');
    const connect: SenderCommand = { do: 'open', lane, host, port, token, ...options };
    const answer = await this.#sender.ask<OpenedMessage | RefusedMessage>(connect, 'opened', 'refused');
    if (answer.event === 'opened') return undefined;
    await this.#receiver.ask({ do: 'close', lane } satisfies ReceiverCommand, 'closed');
    return answer.message;
  }

  /** Sends the whole region once, so that both ends have mapped all of it. */
  async touch(lane: string, regionPages: number): Promise<void> {
    for (let firstPage = 0; firstPage < regionPages; firstPage += TOUCH_PAGES) {
      const pages = Math.min(TOUCH_PAGES, regionPages - firstPage);
      await this.send(lane, { firstPage, pages });
    }
  }

  /** One transfer; settles when its pages are in the receiver's file, so that the next has the machine to itself. */
  async send(lane: string, shape: TransferShape): Promise<Transfer> {
    this.#receiver.forget();
    const sent = await this.#sender.ask<SentMessage>(
      { do: 'send', lane, ...shape } satisfies SenderCommand,
      'sent',
    );
    const received = await this.#receiver.next<ReceivedMessage>('received');
    const bytes = shape.pages * pageBytes;
    const megabytes = bytes / megabyte;
    return {
      strategy: sent.strategy,
      sample: {
        sendMs: sent.sendMs,
        ackMs: sent.ackMs,
        throughputGbPerS: bytes / sent.ackMs / 1e6,
        senderCpuMsPerMb: sent.cpuMs / megabytes,
        senderProcessCpuMsPerMb: sent.processCpuMs / megabytes,
        receiverCpuMsPerMb: received.receiveCpuMs / megabytes,
        receiverDigestMsPerMb: received.digestMs / megabytes,
        senderSyscalls: sent.syscalls,
        receiverSyscalls: received.receiveSyscalls,
        copiedBytes: sent.copiedBytes,
        referenceBytes: sent.referenceBytes,
        wireBytes: sent.bytes,
      },
    };
  }

  async close(lane: string): Promise<void> {
    await this.#sender.ask({ do: 'close', lane } satisfies SenderCommand, 'closed');
    await this.#receiver.ask({ do: 'close', lane } satisfies ReceiverCommand, 'closed');
  }
}
