// The jobs of attention: what a caller says, and the words that kernels read of it (attention.ts, attention-tiles.ts).

/** Words beside a cache [kv head][token]: bytes from head to head. */
export interface CacheWords {
  readonly address: number;
  readonly head: number;
}

/** A tensor [token, head, values]: strides in bytes; values lie side by side. */
export interface Heads {
  readonly address: number;
  readonly token: number;
  readonly head: number;
}

export interface AttentionJob {
  readonly tokens: number;
  readonly kvHeads: number;
  /** Query heads of a kv head; query head n reads kv head floor(n / group). */
  readonly group: number;
  /** Keys there are: past ones and those of these tokens. */
  readonly keys: number;
  readonly causal: boolean;
  /** Keys that a token sees, its own included. */
  readonly window?: number;
  readonly scale: number;
  readonly cap?: number;
  readonly q: Heads;
  readonly y: Heads;
  /** A cache [kv head][capacity][head]: token = `cacheRowBytes`, head = that times the capacity. */
  readonly k: Heads;
  readonly v: Heads;
  /** Where the cache keeps words beside its rows. */
  readonly kScales?: CacheWords;
  readonly vScales?: CacheWords;
  /** Rows of `keys` float32 by token and query head; a stride of 0 broadcasts. */
  readonly mask?: Heads;
  /** Address of a float32 for each query head. */
  readonly sink?: number;
  /** Parts of a block's keys, and of its values, that are read side by side: 4 if not said. */
  readonly streams?: number;
}

export const FIELDS = [
  "tokens", "kvHeads", "group", "keys", "past", "causal", "window", "scale", "cap", "tile", "tiles", "sink",
  "q", "qToken", "qHead", "y", "yToken", "yHead", "k", "kToken", "kHead", "v", "vToken", "vHead", "mask", "maskToken", "maskHead",
  "kScales", "kScalesHead", "vScales", "vScalesHead", "streams",
] as const; // prettier-ignore
export type Field = (typeof FIELDS)[number];

/** The words of a job whose items are tiles of so many tokens. */
export function jobWords(job: AttentionJob, tile: number): Int32Array {
  const heads = ({ address, token, head }: Heads): number[] => [address, token, head];
  const none = { address: 0, token: 0, head: 0 };
  const args = Int32Array.of(
    ...[job.tokens, job.kvHeads, job.group, job.keys, job.keys - job.tokens, Number(job.causal), job.window ?? 0, 0, 0],
    ...[tile, Math.ceil(job.tokens / tile), job.sink ?? 0],
    ...[job.q, job.y, job.k, job.v, job.mask ?? none].flatMap(heads),
    ...[job.kScales ?? none, job.vScales ?? none].flatMap(({ address, head }) => [address, head]),
    job.streams ?? 4,
  );
  const floats = new Float32Array(args.buffer);
  floats[FIELDS.indexOf("scale")] = job.scale;
  floats[FIELDS.indexOf("cap")] = job.cap ?? 1;
  return args;
}
