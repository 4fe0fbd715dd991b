/**
 * One run: a seed decides the settings, the delays and what goes wrong. Then
 * everything that can be mended is mended, and what must have come of it is
 * checked: somebody runs the VM, and its output flows.
 */
import type { PrimaryAction, PrimaryEvent } from '../../../lib/primary/machine.js';
import { BackupHost } from './backup-host.js';
import { PrimaryHost } from './primary-host.js';
import { Qemu } from './qemu.js';
import { Violation, World } from './world.js';

export interface RunOptions {
  readonly tamper?: (actions: readonly PrimaryAction[], event: PrimaryEvent) => readonly PrimaryAction[];
  readonly fences?: boolean;
  readonly forgets?: boolean;
  readonly forgetsMarks?: boolean;
  readonly waitsForDisks?: boolean;
  /** The VM is to move, not to be protected. */
  readonly migrates?: boolean;
}

export interface RunResult {
  readonly seed: number;
  readonly violation: string | undefined;
  readonly trace: readonly string[];
  /** How it ended, for seeing that the runs reach what they should. */
  readonly ending: string;
  readonly packetsLeft: number;
}

const HOST_FAULTS = [
  'kill-primary',
  'kill-qemu',
  'power-loss',
  'kill-backup',
  'backup-disk',
  'cut-to-backup',
  'cut-to-primary',
  'cut-both',
  'operator-pause',
] as const;
const FAULTS = [...HOST_FAULTS, 'switchover', 'detach', 'takeover', 'reset'] as const;
/** `takeover` not: an operator's word while the VM lives here is no part of it. */
const MIGRATION_FAULTS = [...HOST_FAULTS, 'detach', 'give-up', 'reset'] as const;
type Fault = (typeof FAULTS)[number] | (typeof MIGRATION_FAULTS)[number];

const TROUBLE_MS = 1_000;
const MENDED_MS = 3_000;
/** Each fails with a chance of one in fifteen: all of them never do. */
const OPERATOR_ATTEMPTS = 8;

export const run = (seed: number, options: RunOptions = {}): RunResult => {
  const simulation = new Simulation(seed, options);
  let violation: string | undefined;
  try {
    simulation.play();
  } catch (error) {
    if (!(error instanceof Violation)) throw error;
    violation = error.message;
  }
  const { world } = simulation;
  return { seed, violation, trace: world.trace, ending: simulation.ending(), packetsLeft: world.leftCount };
};

class Simulation {
  readonly world: World;
  readonly #qemu: Qemu;
  readonly #options: RunOptions;
  readonly #onBackupLost: 'hold' | 'release';
  readonly #takeover: 'auto' | 'manual';
  readonly #connectionGraceMs: number;
  readonly #pacing: 'fixed' | 'load' | 'assumed';
  readonly #disks: boolean;
  readonly #migrates: boolean;
  #primary: PrimaryHost;
  #backup: BackupHost | undefined;
  #generations = 1;
  #poweredOff = false;
  /** The backup's memory was lost: with the primary's QEMU gone as well, nobody can have the VM. */
  #backupLostAll = false;

  constructor(seed: number, options: RunOptions) {
    this.#options = options;
    this.world = new World(seed);
    const { chance } = this.world;
    this.#onBackupLost = chance.oneIn(4) ? 'release' : 'hold';
    this.#takeover = chance.oneIn(5) ? 'manual' : 'auto';
    this.#connectionGraceMs = chance.oneIn(2) ? 0 : 250;
    this.#pacing = chance.pick(['fixed', 'load', 'assumed']);
    this.#disks = chance.oneIn(2);
    this.#migrates = options.migrates ?? false;
    this.#qemu = new Qemu(this.world);
    this.#backup = this.#newBackup();
    this.#primary = this.#newPrimary(false);
  }

  play(): void {
    const { world } = this;
    const { clock, chance } = world;
    const faults = Math.floor(chance.between(0, 5));
    for (let index = 0; index < faults; index += 1) {
      const fault: Fault = chance.pick<Fault>(this.#migrates ? MIGRATION_FAULTS : FAULTS);
      clock.at(this.#troubleAtMs(), () => this.#strike(fault));
    }
    clock.runUntil(TROUBLE_MS);
    world.log('world', 'mended from here on');
    this.#mend();
    clock.runUntil(MENDED_MS);
    // The operator's part: a backup that waits for a word gets it, also after a takeover that failed.
    let nowMs = MENDED_MS;
    for (let attempt = 0; attempt < OPERATOR_ATTEMPTS; attempt += 1) {
      const waits = this.#backup?.state.phase.name;
      const isAsked = (waits === 'grace' && !this.#runsOnHere()) || waits === 'ended';
      if (isAsked) this.#backup?.operatorTakesOver();
      nowMs += 50;
      clock.runUntil(nowMs);
    }
    nowMs += 100;
    clock.runUntil(nowMs);
    const leftBefore = world.leftCount;
    clock.runUntil(nowMs + 500);
    this.#judge(world.leftCount - leftBefore);
  }

  /** A migration is over soon, and its last moments are what matters. */
  #troubleAtMs(): number {
    const { chance } = this.world;
    return this.#migrates ? chance.between(1, 160) : chance.between(60, TROUBLE_MS);
  }

  ending(): string {
    const { phase } = this.#primary.state;
    const primary = phase.name === 'ended' ? phase.outcome.kind : phase.name;
    return `${this.#primary.life.alive ? primary : 'dead'}/${this.world.takenOver === undefined ? 'backup waits' : 'backup runs'}`;
  }

  /** A migration's checkpoint is run by nobody while the VM lives here, or where it ran past it. */
  #runsOnHere(): boolean {
    const { lastCommit, lastLeft } = this.world;
    return this.#migrates && (this.#qemu.alive || lastLeft > (lastCommit?.sent ?? 0));
  }

  #newBackup(): BackupHost {
    const { world } = this;
    const options = {
      takeover: this.#takeover,
      connectionGraceMs: this.#connectionGraceMs,
      fences: this.#options.fences ?? true,
      disks: this.#disks,
      waitsForDisks: this.#options.waitsForDisks ?? true,
    };
    return new BackupHost(
      world,
      options,
      100 * this.#generations++,
      world.takenOver === undefined ? undefined : 2,
    );
  }

  #newPrimary(adopted: boolean): PrimaryHost {
    const options = {
      onBackupLost: this.#onBackupLost,
      pacing: this.#pacing,
      disks: this.#disks,
      migrates: this.#migrates,
      forgetsMarks: this.#options.forgetsMarks,
      forgets: this.#options.forgets,
      tamper: this.#options.tamper,
    };
    return new PrimaryHost(this.world, this.#qemu, options, () => this.#backup, adopted);
  }

  #strike(fault: Fault): void {
    const { world } = this;
    world.log('fault', fault);
    switch (fault) {
      case 'kill-primary':
        this.#primary.kill();
        world.clock.after(world.chance.between(10, 300), () => this.#restartPrimary());
        return;
      case 'kill-qemu':
        this.#qemu.alive = false;
        this.#primary.qemuDied();
        return;
      case 'power-loss':
        this.#poweredOff = true;
        world.network.powerLoss('primary');
        this.#qemu.alive = false;
        this.#primary.life.alive = false;
        return;
      case 'kill-backup':
        this.#backup?.kill();
        this.#backup = undefined;
        if (world.takenOver === undefined) this.#backupLostAll = true;
        world.clock.after(world.chance.between(10, 300), () => this.#restartBackup());
        return;
      case 'backup-disk':
        if (!this.#disks) return;
        this.#backup?.diskFails();
        world.clock.after(world.chance.between(20, 400), () => {
          world.replica.isFaulty = false;
        });
        return;
      case 'cut-to-backup':
      case 'cut-to-primary':
      case 'cut-both':
        if (fault !== 'cut-to-primary') world.network.cut('primary');
        if (fault !== 'cut-to-backup') world.network.cut('backup');
        world.clock.after(world.chance.between(20, 600), () => world.network.heal());
        return;
      case 'operator-pause':
        if (this.#primary.life.alive && !this.#primary.ended && this.#primary.operatorPauses()) {
          world.clock.after(world.chance.between(20, 200), () => this.#operatorResumes());
        }
        return;
      case 'switchover':
        this.#primary.dispatch({ type: 'switchover' });
        return;
      case 'detach':
        this.#primary.dispatch({ type: 'detach' });
        return;
      case 'takeover':
        this.#backup?.operatorTakesOver();
        return;
      case 'give-up':
        this.#primary.dispatch({
          type: 'give-up',
          failure: { code: 'HOLDFAST_E_LIMIT', message: 'time is up' },
        });
        return;
      case 'reset':
        this.#primary.dispatch({ type: 'vm-reset' });
        return;
    }
  }

  #operatorResumes(): void {
    const { state } = this.#primary;
    if (!this.#qemu.alive || !state.operatorPaused) return;
    if (state.phase.name === 'ended') {
      if (state.phase.outcome.kind === 'detached') this.#qemu.cont();
      return;
    }
    // An operator who sees that the VM is held, or in a pause, does not start it now, but later.
    if (state.vmStopped || this.#primary.inPause) this.world.clock.after(50, () => this.#operatorResumes());
    else this.#primary.operatorResumes();
  }

  #restartPrimary(): void {
    if (this.#primary.life.alive || this.#primary.ended || !this.#qemu.alive || this.#poweredOff) return;
    this.world.log('world', 'the primary daemon starts again');
    this.#primary = this.#newPrimary(true);
  }

  #restartBackup(): void {
    if (this.#backup !== undefined) return;
    this.world.log('world', 'the backup daemon starts again');
    this.#backup = this.#newBackup();
  }

  #mend(): void {
    this.world.network.heal();
    this.#restartPrimary();
    this.#restartBackup();
    this.#operatorResumes();
  }

  /** Whoever should have the VM has it. */
  #judge(leftLately: number): void {
    const { world } = this;
    const { phase } = this.#primary.state;
    if (world.takenOver !== undefined) {
      if (!world.granted && this.#qemu.alive && leftLately > 0) world.violated('both sides release output');
      return;
    }
    if (this.#migrates && phase.name === 'ended' && phase.outcome.kind === 'failed') {
      if (this.#qemu.alive && this.#primary.life.alive) this.#judgeStayed(leftLately);
      return;
    }
    if (this.#qemu.alive && this.#primary.life.alive) {
      const { name } = phase;
      if (name === 'ended' && phase.outcome.kind !== 'detached') {
        // Failed: left as the policy says. Fenced, and the backup that fenced it lost all before its VM ran.
        const explained =
          phase.outcome.kind === 'failed' || (phase.outcome.kind === 'fenced' && this.#backupLostAll);
        if (!explained) world.violated(`nobody runs the VM: the primary ended as ${phase.outcome.kind}`);
        return;
      }
      if (leftLately === 0) {
        const held = `${name}, VM ${this.#qemu.running ? 'running' : 'stopped'}, ${this.#qemu.heldPackets} packets held`;
        world.violated(`nothing leaves any more (${held})`);
      }
      return;
    }
    if (world.lastCommit !== undefined && !this.#runsOnHere()) {
      world.violated('the primary is gone, and its checkpoint is not run');
    }
  }

  /** A migration that failed: the VM runs on, unless it may have been handed over, or somebody paused it. */
  #judgeStayed(leftLately: number): void {
    const { mustHold, operatorPaused } = this.#primary.state;
    if (leftLately === 0 && !mustHold && !operatorPaused) {
      this.world.violated('the migration failed, and the VM does not run on');
    }
  }
}
