// Opaque formats: blocks given by their bytes alone (ggml blocks, outlier-victim pairs). The definer supplies how one
// block is written and read; sizes, shapes and bad values are checked here once.
import { isA, plainBytes } from "../core/check.ts";
import { NAME } from "../core/codec.ts";
import { LowbitError } from "../core/errors.ts";
import { CALL, NUMBER, RECORD, checkFields } from "../core/fields.ts";
import type { SearchLoops, SearchSpec } from "../core/search.ts";
import type { NumberFormat, OpaqueFormat } from "../core/types.ts";
import { float32 } from "../float32.ts";
import { defineBlock } from "./block.ts";

/**
 * How a block reads as codes of one format under a scale, and a minimum, per run of elements. Kernels run on these;
 * decoding follows from them.
 */
export interface OpaquePlanes {
  /** At most 8 bits. */
  readonly element: NumberFormat;
  /** Elements per scale; a divisor of the block size. */
  readonly span: number;
  /** value = code's value * scale + minimum; default no minimum. */
  readonly min?: boolean;
  /**
   * Reads bytes[at .. at + blockBytes): a code per element from codes[to], a scale and a minimum per run from
   * scales[run] and mins[run]. Any bytes must read.
   */
  readonly readBlock: (
    bytes: Uint8Array,
    at: number,
    codes: Uint8Array,
    to: number,
    scales: Float64Array,
    mins: Float64Array,
    run: number,
  ) => void;
}

/** Blocks known by their bytes: how many, and the functions that read and write them. */
export interface OpaqueOptions {
  readonly name: string;
  readonly aliases?: readonly string[];
  readonly spec: string;
  /** Tensor type in GGUF files, where there is one. */
  readonly gguf?: number;
  /** Elements and bytes of one block. */
  readonly blockSize: number;
  readonly blockBytes: number;
  /**
   * Writes x[at .. at + blockSize) (finite) as out[to .. to + blockBytes), which is zero before. Where `importance` is
   * given, importance[at + j] weighs the squared error of x[at + j]; an encoder may leave it aside. `loops` are there
   * where `search` is, and do its work.
   */
  readonly encodeBlock: (x: Float32Array, at: number, out: Uint8Array, to: number, importance?: Float32Array, loops?: SearchLoops) => void;
  /** For an encoder that searches scales: its loops as data, and as they run without a kernel. */
  readonly search?: { readonly spec: SearchSpec; readonly loops: SearchLoops };
  /**
   * Reads bytes[at .. at + blockBytes) into out[to .. to + blockSize). Any bytes must decode. Left out where `planes`
   * say it.
   */
  readonly decodeBlock?: (bytes: Uint8Array, at: number, out: Float32Array, to: number) => void;
  /** Where all elements of a block are codes of one format: kernels then run on them packed. */
  readonly planes?: OpaquePlanes;
}

/**
 * Blocks by way of their planes: the products and sums are exact in binary64 for codes and scales of at most 24 bits
 * each, and rounded once.
 */
function decodeByPlanes(planes: OpaquePlanes, blockSize: number): NonNullable<OpaqueOptions["decodeBlock"]> {
  const { element, span, min, readBlock } = planes;
  const codes = new Uint8Array(blockSize);
  const scales = new Float64Array(blockSize / span);
  const mins = new Float64Array(blockSize / span);
  const values = element.table!;
  return (bytes, at, out, to) => {
    readBlock(bytes, at, codes, 0, scales, mins, 0);
    for (let run = 0, j = 0; run < scales.length; run++)
      for (const end = j + span; j < end; j++) {
        const product = values[codes[j]] * scales[run];
        out[to + j] = min === true ? product + mins[run] : product;
      }
  };
}

function checkImportance(name: string, x: Float32Array, importance: Float32Array): void {
  if (!(importance instanceof Float32Array))
    throw new TypeError(`${name}.encodeBytes importance: expected a Float32Array, got ${isA(importance)}.`);
  const bad = importance.findIndex((v) => !(v >= 0 && v < Infinity));
  if (importance.length !== x.length || bad >= 0)
    throw new LowbitError(
      bad >= 0 ? "E_VALUE" : "E_SHAPE",
      `${name}.encodeBytes importance: expected ${x.length} finite weights >= 0, one for each value, got ${bad >= 0 ? importance[bad] : importance.length}.`,
    );
}

const defined = new Map<string, OpaqueFormat>();

/**
 * The opaque format of a name that this process has defined: functions cannot be stored, so a definition carries the
 * name alone.
 */
export const opaqueByName = (name: unknown): OpaqueFormat | undefined => defined.get(name as string);

/**
 * An opaque format. A later definition of the same name replaces the earlier one where packed tensors are read back.
 * @throws LowbitError E_FORMAT for sizes that are no positive integers
 * @example
 * const sign32 = defineOpaque({
 *   name: "sign32",
 *   spec: "one float32 scale and 32 signs a block",
 *   blockSize: 32,
 *   blockBytes: 8,
 *   encodeBlock(x, at, out, to) {
 *     const view = new DataView(out.buffer, out.byteOffset + to, 8);
 *     view.setFloat32(0, x.subarray(at, at + 32).reduce((sum, v) => sum + Math.abs(v), 0) / 32, true);
 *     for (let i = 0; i < 32; i++) if (x[at + i] < 0) out[to + 4 + (i >> 3)] |= 1 << (i & 7);
 *   },
 *   decodeBlock(bytes, at, out, to) {
 *     const scale = new DataView(bytes.buffer, bytes.byteOffset + at, 4).getFloat32(0, true);
 *     for (let i = 0; i < 32; i++) out[to + i] = (bytes[at + 4 + (i >> 3)] >> (i & 7)) & 1 ? -scale : scale;
 *   },
 * });
 * dequantize(quantize(tensor(new Float32Array(32).fill(-3), [1, 32]), sign32))[5] // -3
 */
export function defineOpaque(options: OpaqueOptions): OpaqueFormat {
  checkFields("defineOpaque", options, {
    blockSize: NUMBER,
    blockBytes: NUMBER,
    gguf: NUMBER,
    encodeBlock: CALL,
    decodeBlock: CALL,
    planes: RECORD,
    search: RECORD,
  });
  const { name, blockSize, blockBytes, encodeBlock, planes, search } = options;
  if (name !== undefined && !NAME.test(name))
    throw new LowbitError(
      "E_FORMAT",
      `defineOpaque name: expected lower case letters, digits and _, got "${name.slice(0, 40)}". Rename the format.`,
    );
  if (name === undefined || encodeBlock === undefined)
    throw new LowbitError("E_FORMAT", "defineOpaque: expected a name and encodeBlock, got none. Say how a block is written.");
  for (const [what, n] of Object.entries({ blockSize, blockBytes }))
    if (!Number.isSafeInteger(n) || n < 1)
      throw new LowbitError("E_FORMAT", `${name} ${what}: expected a positive integer, got ${n}. Give the size of one block.`);
  if (
    planes !== undefined &&
    !(planes.element.bits <= 8 && Number.isSafeInteger(planes.span) && planes.span > 0 && blockSize % planes.span === 0)
  )
    throw new LowbitError(
      "E_FORMAT",
      `${name} planes: expected an element of at most 8 bits and a span that divides ${blockSize}, got ${planes.element.bits} bits and ${planes.span}.`,
    );
  const decodeBlock = options.decodeBlock ?? (planes === undefined ? undefined : decodeByPlanes(planes, blockSize));
  if (decodeBlock === undefined)
    throw new LowbitError("E_FORMAT", `${name}: expected decodeBlock or planes, got neither. Say how a block is read.`);
  const level = { format: float32, span: planes?.span ?? 1 };
  const blocks = (length: number, size: number, what: string): number => {
    if (length % size !== 0)
      throw new LowbitError(
        "E_SHAPE",
        `${name}: expected a whole number of blocks of ${size} ${what}, got ${length}. Pad or cut the data to a multiple of ${size}.`,
      );
    return length / size;
  };
  const encodeBytes = (x: Float32Array, importance: Float32Array | undefined, loops: SearchLoops | undefined): Uint8Array => {
    if (!(x instanceof Float32Array)) throw new TypeError(`${name}.encodeBytes: expected a Float32Array, got ${isA(x)}.`);
    if (importance !== undefined) checkImportance(name, x, importance);
    const n = blocks(x.length, blockSize, "values");
    let bad = 0;
    while (bad < x.length && Number.isFinite(x[bad])) bad++;
    if (bad < x.length)
      throw new LowbitError(
        "E_VALUE",
        `${name}: expected finite values, got ${x[bad]} at index ${bad}. The format has no NaN or infinity; clean the data.`,
      );
    const out = new Uint8Array(n * blockBytes);
    for (let i = 0; i < n; i++) encodeBlock(x, i * blockSize, out, i * blockBytes, importance, loops);
    return out;
  };
  const format: OpaqueFormat = Object.freeze({
    kind: "opaque" as const,
    name,
    aliases: Object.freeze([...(options.aliases ?? [])]),
    spec: options.spec,
    ...(options.gguf === undefined ? {} : { gguf: options.gguf }),
    blockSize,
    blockBytes,
    definition: Object.freeze({ kind: "opaque", name, blockSize, blockBytes }),
    encodeBytes: (x: Float32Array, importance?: Float32Array) => encodeBytes(x, importance, search?.loops),
    ...(search === undefined ? {} : { search: Object.freeze({ spec: search.spec, encodeBytes }) }),
    decodeBytes(given: Uint8Array) {
      const bytes = plainBytes(`${name}.decodeBytes`, given);
      const n = blocks(bytes.length, blockBytes, "bytes");
      const out = new Float32Array(n * blockSize);
      for (let i = 0; i < n; i++) decodeBlock(bytes, i * blockBytes, out, i * blockSize);
      return out;
    },
    ...(planes === undefined
      ? {}
      : {
          planes: defineBlock({
            name: `${name}_planes`,
            element: planes.element,
            scales: [level],
            ...(planes.min === true ? { offset: { role: "min" as const, levels: [level] } } : {}),
            tail: "error",
          }),
          readPlanes(bytes: Uint8Array, codes: Uint8Array, scales: Float64Array, mins: Float64Array) {
            const n = blocks(bytes.length, blockBytes, "bytes");
            for (let i = 0; i < n; i++)
              planes.readBlock(bytes, i * blockBytes, codes, i * blockSize, scales, mins, (i * blockSize) / planes.span);
          },
        }),
  });
  defined.set(name, format);
  return format;
}
