// What the parts of a pass of attention (attention-pass.ts) share: its parameters, the record of a row, the scratch
// space of an item.
import type { Emit, FunctionBuilder, Local, Operand } from "../engine/asm.ts";
import { firstHalf, hasScales, type CacheKind, type ValueKind } from "./cache.ts";
import { loadSome } from "./rows.ts";

export interface PassSpec {
  /** Values of a head. */
  readonly head: number;
  readonly softcap: boolean;
  readonly mask: boolean;
  /** Fused multiply-add, where the engine has it. */
  readonly relaxed: boolean;
  /** What the cache holds; default float32. */
  readonly k?: CacheKind;
  readonly v?: ValueKind;
}

/** Keys of a block. */
export const BLOCK = 64;
/** Zero points of a block's values, two bytes each: behind the scores of two rows and a word that nobody reads. */
export const ZEROS = 2 * 4 * BLOCK + 16;
/** What decides on scratch space and parameters. */
export type CacheSpec = Pick<PassSpec, "head" | "k" | "v">;

export const scoreBytes = (spec: CacheSpec): number => ZEROS + (spec.v === "int4" ? 2 * BLOCK : 0);

/**
 * Of a row while its item runs; bytes in a panel. Then, for keys of integers, the query: its scale, the sum of its
 * codes (of each half of them, where the keys have halves), and the codes.
 */
export const RECORD = { q: 0, y: 4, mask: 8, low: 12, high: 16, most: 20, sum: 24, scale: 28, codeSum: 32, codes: 48 } as const;
/** Values of a key that share a scale, in order. */
export const halvesOf = ({ head, k }: CacheSpec): readonly number[] => {
  if (k !== "int4_halves") return [head];
  const first = firstHalf(head);
  return first === head ? [head] : [first, head - first];
};

export const recordBytes = (spec: CacheSpec): number => (hasScales(spec.k ?? "float32") ? RECORD.codes + 2 * spec.head : 32);

/**
 * Parameters of a pass: row records, scores, keys and values of a block, its first key, how many keys; then fields of
 * the job.
 */
export const PASS = ["record", "scores", "k", "v", "first", "count", "kToken", "vToken"] as const;
/** Words beside keys and values: parameters where the cache has them. */
export const passScales = (spec: PassSpec): ("k" | "v")[] => (["k", "v"] as const).filter((side) => hasScales(spec[side] ?? "float32"));

export const least = (f: FunctionBuilder, a: Operand, b: Operand): Emit => f.op("select", a, b, f.op("i32.lt_s", a, b));
export const greatest = (f: FunctionBuilder, a: Operand, b: Operand): Emit => f.op("select", a, b, f.op("i32.gt_s", a, b));

/** A pass under construction: parameters, and locals that its parts share. */
export interface Pass {
  readonly f: FunctionBuilder;
  readonly spec: PassSpec;
  readonly at: Readonly<Record<(typeof PASS)[number], Local>>;
  readonly scales: Readonly<Partial<Record<"k" | "v", Local>>>;
  readonly scale: Local;
  readonly cap: Local;
  readonly each: readonly number[];
  readonly bytes: number;
  record(r: number, name: keyof typeof RECORD): Emit;
  madd(sum: Local, a: Operand, b: Operand): void;
  readonly locals: {
    readonly end: Local;
    readonly j: Local;
    readonly i: Local;
    readonly left: Local;
    readonly keys: readonly Local[];
    readonly low: readonly Local[];
    readonly high: readonly Local[];
    readonly most: readonly Local[];
    readonly factor: readonly Local[];
    readonly rowAt: readonly Local[];
    readonly v: readonly Local[];
    readonly sums: readonly (readonly Local[])[];
  };
}

/** Four words of a plane beside the cache from key `j` on; 0 beyond the last. */
export function fourWords({ f, locals: { j, end, left } }: Pass, into: Local, base: Local): void {
  const address = f.op("i32.add", base, f.op("i32.shl", j, f.i32(2)));
  f.set(left, f.op("i32.sub", end, j));
  f.if(
    f.op("i32.ge_s", left, f.i32(4)),
    () => f.set(into, f.load("v128.load", address)),
    () => loadSome(f, into, address, left, f.constant32(0)),
  );
}
