/**
 * The QMP commands Holdfast uses: the types of their arguments, and a schema
 * for each answer. Answers are validated where they enter (client.ts); keys we
 * do not use are dropped, so newer QEMUs may add some.
 *
 * Source of the shapes: QEMU's qapi/*.json (7.2 to 10.0).
 */

import { z } from 'zod';

type NoArguments = Readonly<Record<string, never>>;

export interface CommandArguments {
  readonly qmp_capabilities: { readonly enable: readonly string[] };
  readonly stop: NoArguments;
  readonly cont: NoArguments;
  readonly quit: NoArguments;
  readonly system_reset: NoArguments;
  readonly 'query-status': NoArguments;
  readonly 'query-version': NoArguments;
  readonly 'query-name': NoArguments;
  readonly 'query-kvm': NoArguments;
  readonly 'query-machines': NoArguments;
  readonly 'query-commands': NoArguments;
  readonly 'query-cpus-fast': NoArguments;
  readonly 'query-memdev': NoArguments;
  readonly 'query-memory-devices': NoArguments;
  readonly 'query-memory-size-summary': NoArguments;
  readonly 'query-block': NoArguments;
  readonly 'query-named-block-nodes': NoArguments;
  readonly 'query-chardev': NoArguments;
  readonly 'query-migrate': NoArguments;
  readonly 'query-migrate-capabilities': NoArguments;
  readonly 'query-migrate-parameters': NoArguments;
  readonly 'qom-list': { readonly path: string };
  readonly 'qom-get': { readonly path: string; readonly property: string };
  readonly 'qom-set': { readonly path: string; readonly property: string; readonly value: unknown };
  readonly 'qom-list-types': { readonly implements?: string; readonly abstract?: boolean };
  readonly 'object-add': {
    readonly 'qom-type': string;
    readonly id: string;
    readonly [property: string]: unknown;
  };
  readonly 'object-del': { readonly id: string };
  readonly 'human-monitor-command': { readonly 'command-line': string };
  readonly 'xen-save-devices-state': { readonly filename: string; readonly live?: boolean };
  readonly 'migrate-set-capabilities': {
    readonly capabilities: readonly { readonly capability: string; readonly state: boolean }[];
  };
  readonly 'migrate-set-parameters': {
    /** Bytes per second. */
    readonly 'max-bandwidth'?: number;
    /** Milliseconds. */
    readonly 'downtime-limit'?: number;
  };
  readonly migrate: { readonly uri: string };
  readonly migrate_cancel: NoArguments;
  readonly 'migrate-incoming': { readonly uri: string };
  readonly getfd: { readonly fdname: string };
  readonly closefd: { readonly fdname: string };
  readonly 'announce-self': {
    readonly initial: number;
    readonly max: number;
    readonly rounds: number;
    readonly step: number;
  };
}

export type CommandName = keyof CommandArguments;

const nothing = z.object({});

const blockNode = z.object({
  file: z.string().default(''),
  ro: z.boolean(),
  drv: z.string(),
  'node-name': z.string().optional(),
  cache: z.object({ direct: z.boolean(), 'no-flush': z.boolean() }).optional(),
});

/** What each command answers. */
export const commandAnswers = {
  qmp_capabilities: nothing,
  stop: nothing,
  cont: nothing,
  quit: nothing,
  system_reset: nothing,
  'query-status': z.object({ status: z.string(), running: z.boolean() }),
  'query-version': z.object({
    qemu: z.object({ major: z.number(), minor: z.number(), micro: z.number() }),
    package: z.string(),
  }),
  'query-name': z.object({ name: z.string().optional() }),
  'query-kvm': z.object({ enabled: z.boolean(), present: z.boolean() }),
  'query-machines': z.array(z.object({ name: z.string(), alias: z.string().optional() })),
  'query-commands': z.array(z.object({ name: z.string() })),
  'query-cpus-fast': z.array(z.object({ 'cpu-index': z.number(), 'thread-id': z.number() })),
  'query-memdev': z.array(
    z.object({
      id: z.string().optional(),
      size: z.number(),
      share: z.boolean().default(false),
      prealloc: z.boolean(),
    }),
  ),
  'query-memory-devices': z.array(
    z.object({ type: z.string(), data: z.object({ id: z.string().optional() }) }),
  ),
  'query-memory-size-summary': z.object({
    'base-memory': z.number(),
    'plugged-memory': z.number().default(0),
  }),
  'query-block': z.array(
    z.object({
      device: z.string(),
      qdev: z.string().optional(),
      removable: z.boolean(),
      /** Of devices whose errors stop the VM: ok, failed, nospace. */
      'io-status': z.string().optional(),
      inserted: blockNode.optional(),
    }),
  ),
  'query-named-block-nodes': z.array(blockNode),
  'query-chardev': z.array(z.object({ label: z.string(), filename: z.string() })),
  'query-migrate': z.object({
    status: z.string().optional(),
    'error-desc': z.string().optional(),
    'blocked-reasons': z.array(z.string()).optional(),
    ram: z
      .object({
        transferred: z.number(),
        remaining: z.number(),
        duplicate: z.number(),
        normal: z.number(),
        'dirty-sync-count': z.number(),
        'page-size': z.number(),
      })
      .optional(),
    /** Of the destination: where it listens. */
    'socket-address': z
      .array(z.object({ type: z.string(), host: z.string().optional(), port: z.string().optional() }))
      .optional(),
  }),
  'query-migrate-capabilities': z.array(z.object({ capability: z.string(), state: z.boolean() })),
  'query-migrate-parameters': z.object({ 'max-bandwidth': z.number(), 'downtime-limit': z.number() }),
  'qom-list': z.array(z.object({ name: z.string(), type: z.string() })),
  'qom-get': z.unknown(),
  'qom-set': nothing,
  'qom-list-types': z.array(z.object({ name: z.string() })),
  'object-add': nothing,
  'object-del': nothing,
  'human-monitor-command': z.string(),
  'xen-save-devices-state': nothing,
  'migrate-set-capabilities': nothing,
  'migrate-set-parameters': nothing,
  migrate: nothing,
  migrate_cancel: nothing,
  'migrate-incoming': nothing,
  getfd: nothing,
  closefd: nothing,
  'announce-self': nothing,
} as const satisfies Readonly<Record<CommandName, z.ZodType>>;

export type CommandAnswer<C extends CommandName> = z.output<(typeof commandAnswers)[C]>;

/** One command of a pipeline, as it is written on the wire (without its id). */
export type QmpRequest = {
  readonly [C in CommandName]: NoArguments extends CommandArguments[C]
    ? { readonly execute: C; readonly arguments?: CommandArguments[C] }
    : { readonly execute: C; readonly arguments: CommandArguments[C] };
}[CommandName];

export const greetingSchema = z.object({
  QMP: z.object({
    version: z.object({
      qemu: z.object({ major: z.number(), minor: z.number(), micro: z.number() }),
      package: z.string(),
    }),
    capabilities: z.array(z.unknown()),
  }),
});
export type QmpGreeting = z.output<typeof greetingSchema>['QMP'];

export const errorSchema = z.object({ class: z.string(), desc: z.string() });

export const eventSchema = z.object({
  event: z.string(),
  data: z.record(z.string(), z.unknown()).default({}),
  timestamp: z.object({ seconds: z.number(), microseconds: z.number() }),
});
export type QmpEvent = z.output<typeof eventSchema>;
