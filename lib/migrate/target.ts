/** The destination of a migration, as an engine on the source's side sees it. */

export interface MigrationTarget extends AsyncDisposable {
  /** For the source's `migrate`. */
  readonly uri: string;
  /**
   * Runs the VM there. Called at most once, when everything has arrived and the source has given the VM up.
   *
   * @throws QmpError it was refused, and the VM certainly does not run there. After any other error it may.
   */
  resume(): Promise<void>;
  /** Ends the destination, which does not run the VM. Never throws. */
  abandon(): Promise<void>;
}
