// The WebAssembly printer of format expressions (formats/core/expr.ts): four words at a time in v128, every shared node
// emitted once. Tables of up to 16 entries are swizzles or comparisons with constants; longer ones lie in memory and
// are read lane by lane, and a search among thresholds starts from a bucket of the key's upper bits. Equal to
// `compileExpr` for every input.
import { exprNodes, type Expr } from "../../../formats/core/expr.ts";
import type { Emit, FunctionBuilder, Local } from "../engine/asm.ts";

/** Entries of a table that fit one swizzle, and thresholds that are compared one by one. */
const SMALL = 16;

/** Where a table lies, in bytes from the start of the tables. */
interface Place {
  readonly at: number;
  /** Of a search: the bucket is key >>> shift, `steps` halvings follow, `buckets` is the place of their first ranks. */
  readonly shift?: number;
  readonly steps?: number;
  readonly buckets?: number;
  /**
   * Of a table that is read at the rank of a key, with one threshold per bucket at most: `at` holds the threshold and
   * the two entries, 8 bytes.
   */
  readonly key?: Expr;
  readonly signed?: boolean;
}

/** An expression laid out for printing. */
export interface ExprPlan {
  readonly nodes: readonly Expr[];
  /** Words of the tables that the code reads from memory; empty where there are none. */
  readonly tables: Uint32Array;
  readonly places: ReadonlyMap<Expr, Place>;
  /** Equal for expressions that print the same code (tables in memory may differ). */
  readonly key: string;
  /** Are all inputs below 2^31 (codes)? */
  readonly smallInput: boolean;
}

/**
 * Ranks of the thresholds below each bucket of keys, and the most thresholds in one. Keys are ordered as signed words.
 */
function bucketsOf(table: Uint32Array, shift: number): { readonly first: Uint16Array; readonly most: number } {
  const first = new Uint16Array(2 ** (32 - shift));
  let rank = 0;
  let most = 0;
  for (let bucket = 0; bucket < first.length; bucket++) {
    const start = rank;
    first[bucket] = rank;
    while (rank < table.length && (table[rank] ^ 0x80000000) >>> shift === bucket) rank++;
    most = Math.max(most, rank - start);
  }
  return { first, most };
}

/** The coarsest buckets of one threshold at most, else fine ones. */
function findBuckets(table: Uint32Array): { readonly shift: number; readonly first: Uint16Array; readonly most: number } {
  let shift = 21;
  let found = bucketsOf(table, shift);
  while (found.most > 1 && shift > 17) found = bucketsOf(table, --shift);
  return { shift, ...found };
}

/**
 * Entries of a table at the rank of a key: for every bucket the threshold inside, and what lies below it and above;
 * null where there is no room.
 */
function fused(
  entries: Uint32Array,
  thresholds: Uint32Array,
): { readonly words: Uint32Array; readonly shift: number; readonly signed: boolean } | null {
  const { shift, first, most } = findBuckets(thresholds);
  const signed = entries.every((e) => e < 0x8000 || e === 0xffffffff);
  if (most > 1 || !(signed || entries.every((e) => e < 0x10000))) return null;
  const words = new Uint32Array(2 * first.length);
  first.forEach((rank, bucket) => {
    const inside = rank < thresholds.length && (thresholds[rank] ^ 0x80000000) >>> shift === bucket;
    words[2 * bucket] = inside ? thresholds[rank] : 0x7fffffff;
    words[2 * bucket + 1] = (entries[rank] & 0xffff) | (entries[inside ? rank + 1 : rank] << 16);
  });
  return { words, shift, signed };
}

/** @param smallInput the inputs are codes, not bits of float32 */
export function planExpr(expr: Expr, smallInput: boolean): ExprPlan {
  const nodes = exprNodes(expr);
  const index = new Map(nodes.map((e, i) => [e, i]));
  const places = new Map<Expr, Place>();
  const parts: Uint32Array[] = [];
  let bytes = 0;
  const put = (words: Uint32Array): number => {
    parts.push(words);
    bytes += words.byteLength;
    return bytes - words.byteLength;
  };
  const uses = countUses(nodes);
  const skipped = new Set<Expr>();
  for (const e of nodes) {
    const [rank] = e.args;
    if (e.op !== "lookup" || rank.op !== "rank" || uses.get(rank) !== 1 || rank.table!.length < SMALL / 2) continue;
    const found = fused(e.table!, rank.table!);
    if (found === null) continue;
    skipped.add(rank);
    places.set(e, { at: put(found.words), shift: found.shift, signed: found.signed, key: rank.args[0] });
  }
  for (const e of nodes) {
    if (e.table === undefined || e.table.length <= SMALL || skipped.has(e) || places.has(e)) continue;
    if (e.op === "lookup") places.set(e, { at: put(e.table) });
    else {
      const { shift, first, most } = findBuckets(e.table);
      const steps = Math.ceil(Math.log2(most + 1));
      const padded = new Uint32Array(e.table.length + 2 ** steps).fill(0x7fffffff);
      padded.set(e.table);
      const at = put(padded);
      places.set(e, { at, shift, steps, buckets: put(new Uint32Array(first.buffer)) });
    }
  }
  const tables = new Uint32Array(bytes / 4);
  let at = 0;
  for (const part of parts) {
    tables.set(part, at);
    at += part.length;
  }
  const key = JSON.stringify([
    smallInput,
    nodes.map((e) => {
      const place = places.get(e);
      return [
        e.op,
        e.args.map((a) => index.get(a)),
        e.value === undefined ? 0 : Object.is(e.value, -0) ? "-0" : e.value,
        place !== undefined
          ? { ...place, key: place.key && index.get(place.key) }
          : e.table === undefined || skipped.has(e)
            ? 0
            : [...e.table],
      ];
    }),
  ]);
  return { nodes: nodes.filter((e) => !skipped.has(e)), tables, places, key, smallInput };
}

function countUses(nodes: readonly Expr[]): Map<Expr, number> {
  const uses = new Map<Expr, number>();
  for (const e of nodes) for (const a of e.args) uses.set(a, (uses.get(a) ?? 0) + 1);
  return uses;
}

/** Is the word certainly below 2^31? Then signed comparisons, one instruction each, do for unsigned ones. */
function isSmall(e: Expr, smallInput: boolean): boolean {
  const small = (a: Expr): boolean => isSmall(a, smallInput);
  switch (e.op) {
    case "input":
      return smallInput;
    case "const":
      return e.type === "u32" && e.value! < 2 ** 31;
    case "and":
    case "minU":
      return e.args.some(small);
    case "or":
    case "xor":
      return e.args.every(small);
    case "shrU":
      return true; // printed counts are 1 and more
    case "select":
      return small(e.args[1]) && small(e.args[2]);
    case "lookup":
      return e.table!.every((w) => w < 2 ** 31);
    case "rank":
      return true;
    default:
      return false;
  }
}

const PLAIN: Partial<Record<Expr["op"], string>> = {
  and: "v128.and",
  or: "v128.or",
  xor: "v128.xor",
  add: "i32x4.add",
  sub: "i32x4.sub",
  minU: "i32x4.min_u",
  toFloat: "f32x4.convert_i32x4_s",
  fmul: "f32x4.mul",
  fadd: "f32x4.add",
  eq: "i32x4.eq",
  ltS: "i32x4.lt_s",
};

const SHIFTS: Partial<Record<Expr["op"], string>> = { shl: "i32x4.shl", shrU: "i32x4.shr_u", shrS: "i32x4.shr_s" };

/**
 * A printer of the plan in one function: call it with the local that holds four inputs, and emit what it returns before
 * the next call.
 * @param tables address of the tables, a parameter of the function
 */
export function exprPrinter(f: FunctionBuilder, plan: ExprPlan, tables: Local, relaxed: boolean): (input: Local) => Emit {
  const uses = countUses(plan.nodes);
  const locals = new Map<Expr, Local>();
  const localOf = (e: Expr): Local => {
    let local = locals.get(e);
    if (local === undefined) locals.set(e, (local = f.local("v128")));
    return local;
  };
  let [scratch, found]: (Local | null)[] = [null, null];

  /**
   * Four values of a table in memory, by the byte offsets in `offsets`; 16-bit entries leave the upper half of each
   * lane zero.
   */
  const gather = (offsets: Emit, at: number, into: Local, entry: 16 | 32): void => {
    scratch ??= f.local("v128");
    f.set(scratch, f.op("i32x4.add", offsets, f.constant("tables", f.op("i32x4.splat", tables))));
    if (entry === 16) f.set(into, f.constant32(0));
    for (let i = 0; i < 4; i++) {
      const address = f.lane("i32x4.extract_lane", i, scratch);
      if (entry === 16) f.set(into, f.loadLane("v128.load16_lane", address, at, 2 * i, into));
      else if (i === 0) f.set(into, f.load("v128.load32_zero", address, at));
      else f.set(into, f.loadLane("v128.load32_lane", address, at, i, into));
    }
  };

  /**
   * Four instructions without relaxed SIMD, unless one side is zero. A mask is all ones or all zeros, so that relaxed
   * selection is exact.
   */
  const choose = (e: Expr, [mask, yes, no]: readonly Emit[]): Emit => {
    const isZero = (a: Expr): boolean => a.op === "const" && a.value === 0;
    if (isZero(e.args[1])) return f.op("v128.andnot", no, mask);
    if (isZero(e.args[2])) return f.op("v128.and", yes, mask);
    return f.op(relaxed ? "i32x4.relaxed_laneselect" : "v128.bitselect", yes, no, mask);
  };

  const lookup = (e: Expr, indexes: Emit): Emit => {
    const table = e.table!;
    const place = plan.places.get(e);
    const into = localOf(e);
    if (place !== undefined) {
      gather(f.op("i32x4.shl", indexes, f.i32(2)), place.at, into, 32);
      return f.get(into);
    }
    // one swizzle per byte of the entries that is ever set; the index bytes above the lowest are zero and their result
    // is cut off
    scratch ??= f.local("v128");
    f.set(scratch, indexes);
    let sum: Emit | null = null;
    for (let b = 0; b < 4; b++) {
      const plane = Array.from({ length: 16 }, (_, i) => ((table[i] ?? 0) >>> (8 * b)) & 255);
      if (plane.every((byte) => byte === 0)) continue;
      const picked = f.op("i8x16.swizzle", f.constant(`plane ${plane.join()}`, f.v128(plane)), scratch);
      const byte = f.op("v128.and", picked, f.constant32(255));
      const moved = b === 0 ? byte : f.op("i32x4.shl", byte, f.i32(8 * b));
      sum = sum === null ? moved : f.op("v128.or", sum, moved);
    }
    f.set(into, sum ?? f.constant32(0));
    return f.get(into);
  };

  /** Threshold and entries of four buckets, 8 bytes each, then a comparison and a selection. */
  const lookupFused = (e: Expr, key: Local): Emit => {
    const { at, shift, signed } = plan.places.get(e)!;
    const into = localOf(e);
    scratch ??= f.local("v128");
    found ??= f.local("v128");
    const bucket = f.op("i32x4.shr_u", f.op("v128.xor", key, f.constant32(0x80000000)), f.i32(shift!));
    const base = f.constant("tables", f.op("i32x4.splat", tables));
    f.set(scratch, f.op("i32x4.add", f.op("i32x4.shl", bucket, f.i32(3)), base));
    const pair = (from: number, target: Local): void => {
      f.set(target, f.load("v128.load64_zero", f.lane("i32x4.extract_lane", from, scratch!), at));
      f.set(target, f.loadLane("v128.load64_lane", f.lane("i32x4.extract_lane", from + 1, scratch!), at, 1, target));
    };
    pair(0, into);
    pair(2, found);
    f.set(scratch, f.shuffle([0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27], into, found));
    f.set(into, f.shuffle([4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31], into, found));
    // the entry below the threshold is in the lower half: it is moved up where the comparison does not hold
    const above = f.op("i32x4.ge_s", key, scratch);
    f.set(into, f.op(relaxed ? "i32x4.relaxed_laneselect" : "v128.bitselect", into, f.op("i32x4.shl", into, f.i32(16)), above));
    f.set(into, f.op(signed ? "i32x4.shr_s" : "i32x4.shr_u", into, f.i32(16)));
    return f.get(into);
  };

  const rank = (e: Expr, key: Local): Emit => {
    const into = localOf(e);
    const place = plan.places.get(e);
    if (place === undefined) {
      f.set(into, f.constant32(0));
      // a comparison that holds is -1
      for (const threshold of e.table!) f.set(into, f.op("i32x4.sub", into, f.op("i32x4.ge_s", key, f.constant32(threshold))));
      return f.get(into);
    }
    found ??= f.local("v128");
    const bucket = f.op("i32x4.shr_u", f.op("v128.xor", key, f.constant32(0x80000000)), f.i32(place.shift!));
    gather(f.op("i32x4.shl", bucket, f.i32(1)), place.buckets!, into, 16);
    for (let half = 2 ** (place.steps! - 1); half >= 1; half /= 2) {
      gather(f.op("i32x4.shl", into, f.i32(2)), place.at + 4 * (half - 1), found, 32);
      f.set(into, f.op("i32x4.add", into, f.op("v128.and", f.op("i32x4.ge_s", key, found), f.constant32(half))));
    }
    // the largest word reaches the padding, too
    f.set(into, f.op("i32x4.min_s", into, f.constant32(e.table!.length)));
    return f.get(into);
  };

  return (input) => {
    const emits = new Map<Expr, Emit>();
    const keep = (e: Expr, emit: Emit): void => {
      const local = localOf(e);
      f.set(local, emit);
      emits.set(e, f.get(local));
    };
    for (const e of plan.nodes) {
      const args = e.args.map((a) => emits.get(a)!);
      const plain = PLAIN[e.op];
      const shift = SHIFTS[e.op];
      let emit: Emit;
      if (e.op === "input") emit = f.get(input);
      else if (e.op === "const") emit = f.get(e.type === "f32" ? f.constantF32(e.value!) : f.constant32(e.value!));
      else if (plain !== undefined) emit = f.op(plain, ...args);
      else if (shift !== undefined) emit = f.op(shift, args[0], f.i32(e.args[1].value!));
      else if (e.op === "ltU") emit = f.op(e.args.every((a) => isSmall(a, plan.smallInput)) ? "i32x4.lt_s" : "i32x4.lt_u", ...args);
      else if (e.op === "bits") emit = args[0];
      else if (e.op === "select") emit = choose(e, args);
      else if (e.op === "roundShift") {
        // m * 2^-s is exact; adding 2^23 to what is below it rounds half to even, and leaves the integer in the lowest
        // bits
        const power = f.op("i32x4.sub", f.constant32(127 << 23), f.op("i32x4.shl", args[1], f.i32(23)));
        const moved = f.op("f32x4.mul", f.op("f32x4.convert_i32x4_s", args[0]), power);
        emit = f.op("i32x4.sub", f.op("f32x4.add", moved, f.constantF32(2 ** 23)), f.constant32(0x4b000000));
      } else if (e.op === "rank" || plan.places.get(e)?.key !== undefined) {
        const key = plan.places.get(e)?.key ?? e.args[0];
        const search = e.op === "rank" ? rank : lookupFused;
        if (key.op === "input") emit = search(e, input);
        else {
          keep(key, emits.get(key)!);
          emit = search(e, localOf(key));
        }
      } else emit = lookup(e, args[0]);
      if (e.op !== "input" && e.op !== "const" && e.op !== "lookup" && e.op !== "rank" && (uses.get(e) ?? 0) > 1) keep(e, emit);
      else emits.set(e, emit);
    }
    return emits.get(plan.nodes[plan.nodes.length - 1])!;
  };
}
