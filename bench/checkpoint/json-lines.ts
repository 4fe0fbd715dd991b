/** What a command has said, a JSON object per line. */
export const jsonLinesOf = <T>({ stdout }: { readonly stdout: string }): T[] =>
  stdout
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line) as T);
