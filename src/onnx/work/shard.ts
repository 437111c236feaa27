// Which share of the work a run does.

export interface Shard {
  /** From 1. */
  readonly index: number;
  readonly count: number;
}

/** "3/8" as a shard. @throws RangeError */
export function parseShard(text: string): Shard {
  const [, index, count] = (/^(\d{1,6})\/(\d{1,6})$/.exec(text) ?? []).map(Number);
  if (!(index >= 1 && index <= count && count <= 10_000))
    throw new RangeError(`shard: expected I/N with 1 <= I <= N <= 10000, such as 3/8, got ${JSON.stringify(text)}`);
  return { index, count };
}
