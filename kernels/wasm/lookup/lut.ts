// Matrix-vector products by table look-up: C[M,N] = A[M,K] * W[N,K]^T for weights of 1..4 bit planes and int8
// activations (T-MAC, arXiv 2407.00088). A table holds the 16 sums of subsets of 4 neighbouring activations ("a quad");
// one swizzle looks up a bit plane of 16 rows x 4 k, and sums are made by additions only. Exact: same integers as
// gemm.ts, same order of float steps. A half table (8 entries and a sign) would cost two more instructions per look-up
// and save none.
//
// An entry is a subset's sum less half the sum of all four, in -254..255. It is kept as 32 * high + low, two byte
// tables: low in 0..31, high in -8..7. So 8 look-ups add up inside a byte (248; -64..56) before they are widened to
// i16, and i16 sums before they pass 32767 to i32.
import { family } from "../engine/family.ts";
import { groupScale, roundCodes } from "../dot/activations.ts";
import { ModuleBuilder, type Emit, type FunctionBuilder, type FunctionRef, type Local, type Operand } from "../engine/asm.ts";
import { writeRecords, writeWork } from "../engine/items.ts";
import { zeroBlock } from "../products/tiles.ts";

/** Codes as bit planes: value = unit * (u - shift), where `doubled` unit * (2u - shift), plus `bias`. */
export interface LutPlan {
  readonly planes: number;
  readonly equal: boolean;
  /** Bits of each code's planes. */
  readonly remap: Uint8Array;
  readonly unit: number;
  readonly shift: number;
  readonly doubled: boolean;
  readonly bias: number;
}

export interface LutSpec {
  /** Relaxed multiply-add and swizzle may be used. */
  readonly relaxed: boolean;
  /** Bit planes of a weight: 1..4, or 2 where `equal`. */
  readonly planes: number;
  /** Both planes count once (ternary.ts); otherwise plane p counts 2^p. */
  readonly equal: boolean;
  /** Elements of a group, padded to whole vectors of nibbles: see `lutGroup`. */
  readonly group: number;
  /** Values are unit * (u - shift), where `doubled` unit * (2u - shift), for u the planes' number. */
  readonly shift: number;
  readonly doubled: boolean;
  readonly zeroPoint: boolean;
  readonly add: boolean;
  readonly shared: boolean;
}

/** Look-ups that fit a byte: 8 * 31 = 248. */
const BYTE_LOOKUPS = 8;
const ENTRY_MAX = 255;

/**
 * Smallest padded group for a span of n elements: a byte holds one plane of two quads, or (`equal`) both planes of one.
 */
export const lutGroup = (equal: boolean, n: number): number => (equal ? Math.ceil(n / 4) * 4 : Math.ceil(n / 8) * 8);

/** Largest number that the planes stand for. */
export const lutMax = (spec: Pick<LutSpec, "planes" | "equal">): number => (spec.equal ? spec.planes : 2 ** spec.planes - 1);

/**
 * Bytes of a (16 rows x group) record: nibbles, then 16 float32 scales, 16 int16 zero points in 64 bytes, 16 float32
 * addends.
 */
export function lutRecord(spec: Pick<LutSpec, "planes" | "group" | "zeroPoint" | "add">): {
  readonly zeroPoint: number;
  readonly codes: number;
  readonly add: number;
  readonly bytes: number;
} {
  const codes = (spec.group / 8) * spec.planes * 16;
  const zeroPoint = codes + 64;
  const add = zeroPoint + (spec.zeroPoint ? 64 : 0);
  return { codes, zeroPoint, add, bytes: add + (spec.add ? 64 : 0) };
}

/**
 * Bytes of a group of activations: f32 scale, i32 correction, i32 -sum, f32 sum * scale; then the two tables of each
 * quad.
 */
export const lutTables = (group: number): number => 16 + 8 * group;

/** One vector of nibbles: the quads that its low and high nibbles look up. */
interface Step {
  readonly low: number;
  readonly high: number;
}

/** A run of look-ups that is summed in bytes, then counted `2^shift` times beside the run before it. */
type Run = readonly Step[];

/** The runs of `quads` quads of one body, in the order of the record. */
function runsOf(spec: LutSpec, quads: number): Run[] {
  if (spec.equal) return [Array.from({ length: quads }, (_, q) => ({ low: q, high: q }))];
  const run: Run = Array.from({ length: quads / 2 }, (_, i) => ({ low: 2 * i, high: 2 * i + 1 }));
  return Array.from({ length: spec.planes }, () => run);
}

/** Quads whose look-ups of one run fit bytes. */
const quadsPerBody = (spec: Pick<LutSpec, "equal">): number => (spec.equal ? BYTE_LOOKUPS / 2 : BYTE_LOOKUPS);

/**
 * Where the bit of plane p of element i of a group is: byte vector (of 16 rows) and bit. Row r of 16 is byte 2r for r <
 * 8, else 2(r - 8) + 1, so that the even and odd bytes widen to consecutive rows.
 */
export function lutPlace(
  spec: Pick<LutSpec, "planes" | "equal" | "group">,
  i: number,
  p: number,
): { readonly vector: number; readonly bit: number } {
  const quad = i >> 2;
  if (spec.equal) return { vector: quad, bit: 4 * p + (i & 3) };
  const perBody = quadsPerBody(spec);
  const body = Math.floor(quad / perBody);
  const inBody = Math.min(perBody, spec.group / 4 - body * perBody);
  const within = quad - body * perBody;
  const vector = (body * perBody * spec.planes) / 2 + ((spec.planes - 1 - p) * inBody) / 2 + (within >> 1);
  return { vector, bit: 4 * (within & 1) + (i & 3) };
}

/** tile(a, w, w1, c, groups): 16 rows of W at `w` and, for nv = 2, 16 at `w1`; 16 nv floats at c. */
function writeTile(f: FunctionBuilder, spec: LutSpec, nv: 1 | 2): void {
  const record = lutRecord(spec);
  const quads = spec.group / 4;
  const perBody = quadsPerBody(spec);
  const bodies = Math.floor(quads / perBody);
  const rest = quads - bodies * perBody;
  // short code in a loop: V8 11 schedules long blocks into spills, and V8 13 gains nothing by them
  const looped = bodies > 1;
  // sums of a whole group fit i16, or are passed on to i32 after each body
  const wide = quads * lutMax(spec) * ENTRY_MAX > 32767;
  const [a, w0, w1, c, groups] = [0, 1, 2, 3, 4].map((i) => f.param(i));
  const w = [w0, w1].slice(0, nv);
  const at = looped ? f.locals("i32", nv) : w;
  const tables = looped ? f.local("i32") : a;
  const left = f.local("i32");
  const low = f.locals("v128", nv);
  const high = f.locals("v128", nv);
  const sums = w.map(() => f.locals("v128", 2));
  const totals = w.map(() => f.locals("v128", wide ? 4 : 2));
  const bytes = f.locals("v128", nv);
  const index = f.locals("v128", nv);
  const [tableLow, tableHigh, scale, base, factor, sum] = f.locals("v128", 6);
  const nibble = f.constant8(15);
  const swizzle = spec.relaxed ? "i8x16.relaxed_swizzle" : "i8x16.swizzle";

  const lookUp = (quad: number, load: boolean, first: boolean): void => {
    if (load) {
      f.set(tableLow, f.load("v128.load", tables, 16 + 32 * quad));
      f.set(tableHigh, f.load("v128.load", tables, 32 + 32 * quad));
    }
    for (let j = 0; j < nv; j++) {
      const [l, h] = [f.op(swizzle, tableLow, index[j]), f.op(swizzle, tableHigh, index[j])];
      f.set(low[j], first ? l : f.op("i8x16.add", low[j], l));
      f.set(high[j], first ? h : f.op("i8x16.add", high[j], h));
    }
  };
  /** One body: `count` quads whose nibbles start at `vector` and whose tables at `quad`; leaves its sums in `sums`. */
  const body = (count: number, vector: number, quad: number): void => {
    let next = vector;
    runsOf(spec, count).forEach((run, r) => {
      run.forEach((step, s) => {
        for (let j = 0; j < nv; j++) {
          f.set(bytes[j], f.load("v128.load", at[j], 16 * next));
          f.set(index[j], f.op("v128.and", bytes[j], nibble));
        }
        lookUp(quad + step.low, true, s === 0);
        for (let j = 0; j < nv; j++) f.set(index[j], f.op("v128.and", f.op("i16x8.shr_u", bytes[j], f.i32(4)), nibble));
        lookUp(quad + step.high, step.high !== step.low, false);
        next++;
      });
      for (let j = 0; j < nv; j++) {
        const halves = [
          f.op("i16x8.add", f.op("v128.and", low[j], f.constant16(255)), f.op("i16x8.shr_s", f.op("i16x8.shl", high[j], f.i32(8)), f.i32(3))),
          f.op("i16x8.add", f.op("i16x8.shr_u", low[j], f.i32(8)), f.op("i16x8.shl", f.op("i16x8.shr_s", high[j], f.i32(8)), f.i32(5))),
        ]; // prettier-ignore
        halves.forEach((half, i) => {
          const before = sums[j][i];
          // planes come highest first: each counts twice the next
          f.set(before, r === 0 ? half : f.op("i16x8.add", f.op("i16x8.shl", before, f.i32(1)), half));
        });
      }
    });
  };
  /** Adds `sums` to `totals`, or starts them. */
  const collect = (first: boolean): void => {
    for (let j = 0; j < nv; j++)
      for (let i = 0; i < totals[j].length; i++) {
        const part: Emit = wide
          ? f.op(i % 2 === 0 ? "i32x4.extend_low_i16x8_s" : "i32x4.extend_high_i16x8_s", sums[j][i >> 1])
          : f.get(sums[j][i]);
        f.set(totals[j][i], first ? part : f.op(wide ? "i32x4.add" : "i16x8.add", totals[j][i], part));
      }
  };
  const whole = (): void => {
    const perVectors = (perBody * spec.planes) / 2;
    if (!looped) {
      if (bodies === 1) {
        body(perBody, 0, 0);
        collect(true);
      }
      if (rest > 0) {
        body(rest, bodies * perVectors, bodies * perBody);
        collect(bodies === 0);
      }
      return;
    }
    for (const row of totals) for (const total of row) f.set(total, f.v128i32(0));
    w.forEach((from, j) => f.set(at[j], from));
    f.set(tables, a);
    f.set(left, f.i32(bodies));
    f.doWhile(() => {
      body(perBody, 0, 0);
      collect(false);
      at.forEach((pointer) => f.bump(pointer, 16 * perVectors));
      f.bump(tables, 32 * perBody);
      f.bump(left, -1);
    }, f.get(left));
    if (rest > 0) {
      body(rest, 0, 0);
      collect(false);
    }
  };
  const epilogue = (j: number, i: number): void => {
    let total: Emit | Local = wide
      ? totals[j][i]
      : f.op(i % 2 === 0 ? "i32x4.extend_low_i16x8_s" : "i32x4.extend_high_i16x8_s", totals[j][i >> 1]);
    if (spec.doubled) total = f.op("i32x4.shl", total, f.i32(1));
    total = f.op("i32x4.add", total, base);
    if (spec.zeroPoint) {
      const zero = f.load("v128.load16x4_s", w[j], record.zeroPoint + 8 * i);
      total = f.op("i32x4.add", total, f.op("i32x4.mul", zero, factor));
    }
    const converted = f.op("f32x4.convert_i32x4_s", total);
    // the product of the scales first, as in gemm.ts: the families agree bit for bit
    const weight = f.op("f32x4.mul", scale, f.load("v128.load", w[j], record.codes + 16 * i));
    const before = f.load("v128.load", c, 64 * j + 16 * i);
    let next = spec.relaxed
      ? f.op("f32x4.relaxed_madd", converted, weight, before)
      : f.op("f32x4.add", f.op("f32x4.mul", converted, weight), before);
    if (spec.add) next = f.op("f32x4.add", next, f.op("f32x4.mul", f.load("v128.load", w[j], record.add + 16 * i), sum));
    f.store("v128.store", c, 64 * j + 16 * i, next);
  };
  f.doWhile(
    () => {
      whole();
      f.set(scale, f.load("v128.load32_splat", a, 0));
      f.set(base, f.load("v128.load32_splat", a, 4));
      if (spec.zeroPoint) f.set(factor, f.load("v128.load32_splat", a, 8));
      if (spec.add) f.set(sum, f.load("v128.load32_splat", a, 12));
      for (let j = 0; j < nv; j++) for (let i = 0; i < 4; i++) epilogue(j, i);
      f.bump(a, lutTables(spec.group));
      for (const pointer of w) f.bump(pointer, record.bytes);
      f.bump(groups, -1);
    },
    f.op("i32.gt_s", groups, f.i32(0)),
  );
}

/**
 * tables(x, out, groups): quantizes one staged row (groups padded with zeros) as activations.ts states it, and writes
 * its tables.
 */
function writeTables(f: FunctionBuilder, spec: LutSpec): void {
  const { group } = spec;
  const [x, out, groups] = [0, 1, 2].map((i) => f.param(i));
  const [end, at, to, half, halves, total] = f.locals("i32", 6);
  const [amax, q, sums, scale4, first, second] = f.locals("v128", 6);
  const lanes = f.locals("i32", 4);
  const scale = f.local("f32");
  const across = (v: Local): Emit =>
    [0, 1, 2, 3].map((i): Emit => f.lane("i32x4.extract_lane", i, v)).reduce((l, r) => f.op("i32.add", l, r));
  /** All ones in the i16 lanes (of entries 0..7) whose index has bit `i`. */
  const mask = (i: number): Local =>
    f.constant(`subset ${i}`, f.v128(Array.from({ length: 16 }, (_, byte) => ((byte >> 1) & (1 << i) ? 255 : 0))));
  const table = (high: boolean): Emit => {
    const part = (v: Local): Emit => (high ? f.op("i16x8.shr_s", v, f.i32(5)) : f.op("v128.and", v, f.constant16(31)));
    return f.op("i8x16.narrow_i16x8_s", part(first), part(second));
  };
  f.while(f.op("i32.gt_s", groups, f.i32(0)), () => {
    f.set(end, f.op("i32.add", x, f.i32(4 * group)));
    f.set(scale, groupScale(f, x, at, end, amax, 127));
    f.set(scale4, f.op("f32x4.splat", scale));
    f.set(sums, f.v128i32(0));
    f.set(halves, f.i32(0));
    f.set(at, x);
    f.set(to, out);
    f.doWhile(
      () => {
        roundCodes(f, q, at, scale4, 127);
        f.set(sums, f.op("i32x4.add", sums, q));
        lanes.forEach((lane, i) => f.set(lane, f.lane("i32x4.extract_lane", i, q)));
        f.set(half, f.op("i32.shr_s", lanes.map((lane): Emit => f.get(lane)).reduce((l, r) => f.op("i32.add", l, r)), f.i32(1))); // prettier-ignore
        f.set(halves, f.op("i32.add", halves, half));
        f.set(first, f.op("i16x8.splat", f.op("i32.sub", f.i32(0), half)));
        for (let i = 0; i < 3; i++) f.set(first, f.op("i16x8.add", first, f.op("v128.and", f.op("i16x8.splat", lanes[i]), mask(i))));
        f.set(second, f.op("i16x8.add", first, f.op("i16x8.splat", lanes[3])));
        f.store("v128.store", to, 16, table(false));
        f.store("v128.store", to, 32, table(true));
        f.bump(at, 16);
        f.bump(to, 32);
      },
      f.op("i32.lt_u", at, end),
    );
    f.set(total, across(sums));
    f.store("f32.store", out, 0, scale);
    const whole = f.op("i32.mul", halves, f.i32(lutMax(spec) * (spec.doubled ? 2 : 1)));
    f.store("i32.store", out, 4, spec.zeroPoint ? whole : f.op("i32.sub", whole, f.op("i32.mul", total, f.i32(spec.shift))));
    f.store("i32.store", out, 8, f.op("i32.sub", f.i32(0), total));
    f.store("f32.store", out, 12, f.op("f32.mul", f.op("f32.convert_i32_s", total), scale));
    f.set(x, end);
    f.bump(out, lutTables(group));
    f.bump(groups, -1);
  });
}

/**
 * Arguments of `work`, i32 each: `rows` of activations, `chunk` groups at a time. Its items are pairs of 16-row blocks.
 */
export const LUT_ARGUMENTS = ["blocks", "a", "w", "c", "ldc", "groups", "rows", "chunk", "aStride"] as const;

/** A module whose `work` multiplies by the tables of `lutTablesModule`. */
export function lutModule(spec: LutSpec): Uint8Array<ArrayBuffer> {
  const m = new ModuleBuilder({ shared: spec.shared });
  const [one, two]: FunctionRef[] = ([1, 2] as const).map((nv) =>
    m.func(`tile${nv}`, ["i32", "i32", "i32", "i32", "i32"], [], (f) => writeTile(f, spec, nv)),
  );
  writeWork(m, (f, args) => {
    const field = (name: (typeof LUT_ARGUMENTS)[number]): Emit => f.load("i32.load", args, 4 * LUT_ARGUMENTS.indexOf(name));
    const [block, blockBytes, w, c, left, first, count, row, a, cm, at] = f.locals("i32", 11);
    const record = lutRecord(spec).bytes;
    f.set(blockBytes, f.op("i32.mul", field("groups"), f.i32(record)));
    return (item) => {
      f.set(block, f.op("i32.shl", item, f.i32(1)));
      f.set(w, f.op("i32.add", field("w"), f.op("i32.mul", block, blockBytes)));
      f.set(c, f.op("i32.add", field("c"), f.op("i32.shl", block, f.i32(6))));
      f.set(left, field("groups"));
      f.set(first, f.i32(0));
      f.while(f.op("i32.gt_s", left, f.i32(0)), () => {
        f.set(count, f.op("select", field("chunk"), left, f.op("i32.lt_s", field("chunk"), left)));
        f.set(at, f.op("i32.add", w, f.op("i32.mul", first, f.i32(record))));
        f.set(a, f.op("i32.add", field("a"), f.op("i32.mul", first, f.i32(lutTables(spec.group)))));
        f.set(cm, c);
        f.set(row, field("rows"));
        const zero = (c: Operand): void => f.if(f.op("i32.eqz", first), () => zeroBlock(f, c, f.i32(0), 1));
        f.while(f.op("i32.gt_s", row, f.i32(0)), () => {
          zero(cm);
          f.if(
            f.op("i32.lt_u", f.op("i32.add", block, f.i32(1)), field("blocks")),
            () => {
              zero(f.op("i32.add", cm, f.i32(64)));
              f.run(f.call(two, a, at, f.op("i32.add", at, blockBytes), cm, count));
            },
            () => f.run(f.call(one, a, at, at, cm, count)),
          );
          f.bump(a, field("aStride"));
          f.bump(cm, field("ldc"));
          f.bump(row, -1);
        });
        f.bump(first, count);
        f.set(left, f.op("i32.sub", left, count));
      });
    };
  });
  return m.bytes();
}

/** A module whose `work` makes the tables of staged rows: see `recordJob`. */
export function lutTablesModule(spec: LutSpec): Uint8Array<ArrayBuffer> {
  const m = new ModuleBuilder({ shared: spec.shared });
  const tables = m.func(null, ["i32", "i32", "i32"], [], (f) => writeTables(f, spec));
  writeRecords(m, 1, (f, x, a, count) => f.run(f.call(tables, x, a, count)));
  return m.bytes();
}

export const lut = family("lut", lutModule);
export const lutTable = family("lut tables", lutTablesModule);
