/** Releases of QEMU, compared. Pure. */

/** `8.1` and `8.1.3` are one release: what a stable one fixes does not change what it can load. */
export const isOlderRelease = (version: string, than: string): boolean =>
  releaseOf(version) < releaseOf(than);

const releaseOf = (version: string): number => {
  const [major = 0, minor = 0] = version.split('.').map(Number);
  return major * 1_000 + minor;
};
