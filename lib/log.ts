/** What Holdfast asks of a logger: pino's shape, so that a pino instance fits as it is. */
export interface Logger {
  debug(fields: object, message: string): void;
  info(fields: object, message: string): void;
  warn(fields: object, message: string): void;
  error(fields: object, message: string): void;
}

export const NOTHING_LOGGED: Logger = {
  debug: () => {},
  info: () => {},
  warn: () => {},
  error: () => {},
};
