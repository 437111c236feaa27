// Opaque formats: blocks given by their bytes alone (ggml blocks, outlier-victim pairs). The definer supplies how one block is written and
// read; sizes, shapes and bad values are checked here once.
import { LowbitError } from "../core/errors.ts";
import type { OpaqueFormat } from "../core/types.ts";

export interface OpaqueOptions {
  readonly name: string;
  readonly aliases?: readonly string[];
  readonly spec: string;
  /** Elements and bytes of one block. */
  readonly blockSize: number;
  readonly blockBytes: number;
  /** Writes x[at .. at + blockSize) (finite) as out[to .. to + blockBytes), which is zero before. */
  readonly encodeBlock: (x: Float32Array, at: number, out: Uint8Array, to: number) => void;
  /** Reads bytes[at .. at + blockBytes) into out[to .. to + blockSize). Any bytes must decode. */
  readonly decodeBlock: (bytes: Uint8Array, at: number, out: Float32Array, to: number) => void;
}

const defined = new Map<string, OpaqueFormat>();

/** The opaque format of a name that this process has defined: functions cannot be stored, so a definition carries the name alone. */
export const opaqueByName = (name: unknown): OpaqueFormat | undefined => defined.get(name as string);

/**
 * An opaque format. A later definition of the same name replaces the earlier one where packed tensors are read back.
 * @throws LowbitError E_FORMAT for sizes that are no positive integers
 */
export function defineOpaque(options: OpaqueOptions): OpaqueFormat {
  const { name, blockSize, blockBytes, encodeBlock, decodeBlock } = options;
  for (const [what, n] of Object.entries({ blockSize, blockBytes }))
    if (!Number.isSafeInteger(n) || n < 1)
      throw new LowbitError("E_FORMAT", `${name} ${what}: expected a positive integer, got ${n}. Give the size of one block.`);
  const blocks = (length: number, size: number, what: string): number => {
    if (length % size !== 0)
      throw new LowbitError(
        "E_SHAPE",
        `${name}: expected a whole number of blocks of ${size} ${what}, got ${length}. Pad or cut the data to a multiple of ${size}.`,
      );
    return length / size;
  };
  const format: OpaqueFormat = Object.freeze({
    kind: "opaque" as const,
    name,
    aliases: Object.freeze([...(options.aliases ?? [])]),
    spec: options.spec,
    blockSize,
    blockBytes,
    definition: Object.freeze({ kind: "opaque", name, blockSize, blockBytes }),
    encodeBytes(x: Float32Array) {
      if (!(x instanceof Float32Array)) throw new TypeError(`${name}.encodeBytes: expected a Float32Array, got ${typeof x}.`);
      const n = blocks(x.length, blockSize, "values");
      const bad = x.findIndex((v) => !Number.isFinite(v));
      if (bad >= 0)
        throw new LowbitError(
          "E_VALUE",
          `${name}: expected finite values, got ${x[bad]} at index ${bad}. The format has no NaN or infinity; clean the data.`,
        );
      const out = new Uint8Array(n * blockBytes);
      for (let i = 0; i < n; i++) encodeBlock(x, i * blockSize, out, i * blockBytes);
      return out;
    },
    decodeBytes(bytes: Uint8Array) {
      if (!(bytes instanceof Uint8Array)) throw new TypeError(`${name}.decodeBytes: expected a Uint8Array, got ${typeof bytes}.`);
      const n = blocks(bytes.length, blockBytes, "bytes");
      const out = new Float32Array(n * blockSize);
      for (let i = 0; i < n; i++) decodeBlock(bytes, i * blockBytes, out, i * blockSize);
      return out;
    },
  });
  defined.set(name, format);
  return format;
}
