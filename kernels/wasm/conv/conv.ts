// Convolution of images of bytes with integer weights, in groups: exact int32 sums, finished as finish.ts has it. An
// unrolled image never exists: 32 outputs at a time, the taps are packed from the padded image, where neighbours lie
// side by side, into a panel of 12 KB, and all filters pass over it in tiles of four or six. A table says how far each
// tap is from the place of an output, so strides, dilations and one or two dimensions are the same code.
//
// Styles: "words" multiplies pairs of i16 (i32x4.dot_i16x8_s), activations less their zero point and weights less
// theirs, -255..255 both: exact. "bytes" multiplies four bytes at once where the relaxed dot product is exact for
// unsigned or signed ones; the zero point of activations is an addend of each filter then (`offsets`).
//
// Weights: [groups][tiles of filters][units][filters], a word each: 2 (words) or 4 (bytes) taps of a filter.
import { ModuleBuilder, type Emit, type FunctionBuilder, type FunctionRef, type Local } from "../engine/asm.ts";
import { family } from "../engine/family.ts";
import { writeWork } from "../engine/items.ts";
import { i32s, least } from "../nn/tiles.ts";
import { PACK, PANEL, ROW, SPAN, unitTaps, writePack, writePlaces, type PackSpec } from "./taps.ts";
import { finishBytes, finishVector, moveSome, narrowCodes, zeroTerm, type Finish } from "./finish.ts";

export interface IntegerConvSpec extends PackSpec {
  readonly to: Finish;
  /** Float32 sums have a bias added. */
  readonly bias: boolean;
  /** Units per turn of the inner loop: 1 for V8 11, which schedules longer blocks into spills. */
  readonly unroll: 1 | 4;
  readonly shared: boolean;
}

/** Filters of a tile: two vectors of sums each; products of words need a register of their own. */
export const tileFilters = (style: IntegerConvSpec["style"]): 4 | 6 => (style === "words" ? 4 : 6);
/** Most units of a chunk of taps: a panel of 12 KB, which each tile of filters passes over. */
const CHUNK = 96;
const PANEL_BYTES = CHUNK * ROW;
/** Most filters of an item: outputs are packed once for them; their sums, 32 KB, are touched once a chunk. */
const MOST = 256;

export interface IntegerConvJob {
  readonly batch: number;
  readonly groups: number;
  /** Filters of a group, outputs of a filter, taps of an output. */
  readonly filters: number;
  readonly outputs: number;
  readonly taps: number;
  /** Packed weights; int32 offsets [groups, filters]; float32 factors and bias [groups, filters]. */
  readonly w: number;
  readonly offsets: number;
  readonly factors: number;
  readonly bias: number;
  /** The padded image; bytes from a batch and from a group to the next. */
  readonly x: number;
  readonly xBatch: number;
  readonly xGroup: number;
  /** Zero point of the image. */
  readonly xZero: number;
  /** Result [batch, groups, filters, outputs]. */
  readonly y: number;
  /** Zero point of codes, and bounds of float32 values or of codes less it. */
  readonly yZero: number;
  readonly low: number;
  readonly high: number;
  /** Address of an int32 for each tap, padded to whole units of four: bytes from an output's place to it. */
  readonly table: number;
  /** Outputs of a row; bytes from an output's place to the next one's, in a row and from row to row. */
  readonly width: number;
  readonly columnStep: number;
  readonly rowStep: number;
}

const FIELDS = [
  "groups", "mBlocks", "nBlocks", "m", "n", "units", "chunk", "mSpan", "nSpan", "w", "wGroup", "offsets", "factors", "bias", "x", "xBatch", "xGroup", "xZero",
  "y", "yGroup", "yZero", "low", "high", "table", "width", "columnStep", "rowStep",
] as const; // prettier-ignore
type Field = (typeof FIELDS)[number];

/** The argument that is the image's zero point: it may be known only when the job runs. */
export const CONV_ZERO = FIELDS.indexOf("xZero");

const bits = (value: number): number => new Int32Array(Float32Array.of(value).buffer)[0];

/** Items, arguments and scratch of a job. `threads`: for how many it is cut. */
export function integerConvJob(
  job: IntegerConvJob,
  spec: IntegerConvSpec,
  threads: number,
): { readonly items: number; readonly args: Int32Array; readonly panelBytes: number } {
  const { batch, groups, filters: m, outputs: n, taps } = job;
  const tile = tileFilters(spec.style);
  const units = Math.ceil(taps / unitTaps(spec.style));
  let mSpan = Math.min(Math.ceil(m / tile) * tile, MOST);
  // blocks of equal height
  mSpan = Math.ceil(Math.ceil(m / Math.ceil(m / mSpan)) / tile) * tile;
  let nSpan = Math.min(Math.ceil(n / PANEL) * PANEL, 256);
  const blocks = (): number => Math.ceil(m / mSpan) * Math.ceil(n / nSpan) * batch * groups;
  const enough = (): boolean => threads === 1 || blocks() >= 4 * threads || mSpan * nSpan * taps < 65536;
  while (nSpan > 2 * PANEL && !enough()) nSpan = Math.ceil(nSpan / 2 / PANEL) * PANEL;
  while (mSpan > 8 * tile && !enough()) mSpan = Math.ceil(mSpan / 2 / tile) * tile;
  const [mBlocks, nBlocks] = [Math.ceil(m / mSpan), Math.ceil(n / nSpan)];
  // chunks of equal length
  const chunk = Math.ceil(units / Math.ceil(units / CHUNK));
  const wGroup = Math.ceil(m / tile) * units * 4 * tile;
  const args = Int32Array.of(
    ...[groups, mBlocks, nBlocks, m, n, units, chunk, mSpan, nSpan, job.w, wGroup, job.offsets, job.factors, job.bias],
    ...[job.x, job.xBatch, job.xGroup, job.xZero, job.y, finishBytes(spec.to) * m * n, job.yZero, bits(job.low), bits(job.high)],
    ...[job.table, job.width, job.columnStep, job.rowStep],
  );
  return { items: mBlocks * nBlocks * batch * groups, args, panelBytes: PANEL_BYTES + ROW * mSpan + ROW + 64 };
}

const TILES = ["w", "wStep", "panel", "sums", "units", "tiles", "fresh", "width"] as const;
const DOT = "i32x4.relaxed_dot_i8x16_i7x16_add_s";

/**
 * tiles(...): sums[filter][32] of `tiles` tiles of filters, wStep bytes apart, over `units` of a panel. `width`: bytes
 * of a unit that count, eight outputs at a time.
 */
function writeTiles(f: FunctionBuilder, { style, unroll }: IntegerConvSpec): void {
  const [firstW, wStep, firstPanel, sums, units, tiles, fresh, width] = TILES.map((_, i) => f.param(i));
  const [w, panel, left, half, out] = f.locals("i32", 5);
  const filters = tileFilters(style);
  const acc = Array.from({ length: filters }, () => f.locals("v128", 2));
  const [p0, p1, x] = f.locals("v128", 3);
  const each = (use: (sum: Local, offset: number) => void): void =>
    acc.forEach((row, r) => row.forEach((sum, j) => use(sum, ROW * r + 16 * j)));
  const step = (count: number): void => {
    for (let u = 0; u < count; u++) {
      f.set(p0, f.load("v128.load", panel, ROW * u));
      f.set(p1, f.load("v128.load", panel, ROW * u + 16));
      acc.forEach((row, r) => {
        f.set(x, f.load("v128.load32_splat", w, 4 * (filters * u + r)));
        row.forEach((sum, j) => {
          const p = j === 0 ? p0 : p1;
          f.set(sum, style === "words" ? f.op("i32x4.add", f.op("i32x4.dot_i16x8_s", p, x), sum) : f.op(DOT, x, p, sum));
        });
      });
    }
    f.bump(w, 4 * filters * count);
    f.bump(panel, ROW * count);
    f.bump(left, -count);
  };
  f.doWhile(() => {
    f.set(half, f.i32(0));
    f.doWhile(
      () => {
        f.set(w, firstW);
        f.set(panel, f.op("i32.add", firstPanel, half));
        f.set(out, f.op("i32.add", sums, half));
        f.set(left, units);
        f.if(
          fresh,
          () => each((sum) => f.set(sum, f.constant32(0))),
          () => each((sum, offset) => f.set(sum, f.load("v128.load", out, offset))),
        );
        if (unroll > 1) f.while(f.op("i32.ge_s", left, f.i32(unroll)), () => step(unroll));
        f.while(f.op("i32.gt_s", left, f.i32(0)), () => step(1));
        each((sum, offset) => f.store("v128.store", out, offset, sum));
        f.bump(half, 32);
      },
      f.op("i32.lt_u", half, width),
    );
    f.bump(firstW, wStep);
    f.bump(sums, ROW * filters);
    f.bump(tiles, -1);
  }, f.get(tiles));
}

const FINISH = ["sums", "filters", "columns", "y", "yStep", "offsets", "factors", "bias", "args", "spare"] as const;

/** finish(...): up to 16 results of each filter. */
function writeFinish(f: FunctionBuilder, spec: IntegerConvSpec): void {
  const [sums, filters, columns, y, yStep, offsets, factors, biases, args, spare] = FINISH.map((_, i) => f.param(i));
  const { to } = spec;
  const size = finishBytes(to);
  const v = f.locals("v128", 4);
  const [offset, factor, bias, low, high, zero] = f.locals("v128", 6);
  const [target, from, bytes] = f.locals("i32", 3);
  const word = (name: Field): Emit => f.load("v128.load32_splat", args, 4 * FIELDS.indexOf(name));
  if (to !== "int32") {
    f.set(low, word("low"));
    f.set(high, word("high"));
    f.set(zero, zeroTerm(f, word("yZero")));
  }
  f.doWhile(() => {
    f.set(offset, f.load("v128.load32_splat", offsets));
    if (to !== "int32") f.set(factor, f.load("v128.load32_splat", factors));
    if (spec.bias) f.set(bias, f.load("v128.load32_splat", biases));
    f.set(target, f.op("select", y, spare, f.op("i32.eq", columns, f.i32(SPAN))));
    v.forEach((sum, i) => {
      f.set(sum, f.op("i32x4.add", f.load("v128.load", sums, 16 * i), offset));
      finishVector(f, to, sum, factor, spec.bias ? bias : null, { low, high, zero });
      if (size === 4) f.store("v128.store", target, 16 * i, sum);
    });
    if (to === "int8" || to === "uint8") f.store("v128.store", target, 0, narrowCodes(f, to, v));
    f.if(f.op("i32.ne", columns, f.i32(SPAN)), () => {
      f.set(from, spare);
      f.set(target, y);
      f.set(bytes, f.op("i32.mul", columns, f.i32(size)));
      moveSome(f, from, target, bytes);
    });
    f.bump(sums, ROW);
    f.bump(y, yStep);
    f.bump(offsets, 4);
    f.bump(factors, 4);
    f.bump(biases, 4);
    f.bump(filters, -1);
  }, f.get(filters));
}

type Parts = Readonly<Record<"places" | "pack" | "tiles" | "finish", FunctionRef>>;

/** Panels of outputs from `n` on, to `end`. */
function writePanels(
  f: FunctionBuilder,
  at: Readonly<Record<"w" | "x" | "y" | "row" | "filters" | "n" | "end", Local>>,
  args: Local,
  panel: Local,
  spec: IntegerConvSpec,
  parts: Parts,
): void {
  const field = (name: Field): Emit => f.load("i32.load", args, 4 * FIELDS.indexOf(name));
  const [columns, second, done, count, tiles, sums, places, spare, width] = f.locals("i32", 9);
  const size = finishBytes(spec.to);
  f.set(sums, f.op("i32.add", panel, f.i32(PANEL_BYTES)));
  f.set(places, f.op("i32.add", sums, f.op("i32.mul", field("mSpan"), f.i32(ROW))));
  f.set(spare, f.op("i32.add", places, f.i32(ROW)));
  const tile = tileFilters(spec.style);
  f.set(tiles, f.op("i32.div_u", f.op("i32.add", at.filters, f.i32(tile - 1)), f.i32(tile)));
  const ofRow = (name: Field): Emit => f.op("i32.add", field(name), f.op("i32.shl", at.row, f.i32(2)));
  f.while(f.op("i32.lt_u", at.n, at.end), () => {
    f.set(columns, least(f, f.op("i32.sub", at.end, at.n), f.i32(PANEL)));
    f.set(width, f.op("i32.shl", f.op("i32.shr_u", f.op("i32.add", columns, f.i32(7)), f.i32(3)), f.i32(5)));
    f.set(second, f.i32(0));
    f.if(f.op("i32.gt_u", columns, f.i32(SPAN)), () => f.set(second, f.op("i32.sub", columns, f.i32(SPAN))));
    f.set(columns, least(f, columns, f.i32(SPAN)));
    f.run(f.call(parts.places, places, at.n, f.op("i32.sub", at.end, f.i32(1)), field("width"), field("columnStep"), field("rowStep")));
    f.set(done, f.i32(0));
    f.doWhile(
      () => {
        f.set(count, least(f, f.op("i32.sub", field("units"), done), field("chunk")));
        const pack = (offset: number, some: Local): void => {
          const taps = f.op("i32.add", field("table"), f.op("i32.mul", done, f.i32(4 * unitTaps(spec.style))));
          const [from, to] = [f.op("i32.add", places, f.i32(offset)), f.op("i32.add", panel, f.i32(offset))];
          f.run(f.call(parts.pack, at.x, from, taps, to, count, field("xZero"), some));
        };
        pack(0, columns);
        f.if(second, () => pack(4 * SPAN, second));
        const w = f.op("i32.add", at.w, f.op("i32.mul", done, f.i32(4 * tile)));
        const wStep = f.op("i32.mul", field("units"), f.i32(4 * tile));
        f.run(f.call(parts.tiles, w, wStep, panel, sums, count, tiles, f.op("i32.eqz", done), width));
        f.bump(done, count);
      },
      f.op("i32.lt_u", done, field("units")),
    );
    const finish = (offset: number, some: Local): void => {
      const y = f.op("i32.add", at.y, f.i32((offset / 4) * size));
      const yStep = f.op("i32.mul", field("n"), f.i32(size));
      const rows = [ofRow("offsets"), ofRow("factors"), ofRow("bias")] as const;
      f.run(f.call(parts.finish, f.op("i32.add", sums, f.i32(offset)), at.filters, some, y, yStep, ...rows, args, spare));
    };
    finish(0, columns);
    f.if(second, () => finish(4 * SPAN, second));
    f.bump(at.y, size * PANEL);
    f.bump(at.n, PANEL);
  });
}

/** A module whose `work` convolves; its arguments are `integerConvJob`'s. */
export function integerConvModule(spec: IntegerConvSpec): Uint8Array<ArrayBuffer> {
  const m = new ModuleBuilder({ shared: spec.shared });
  const parts: Parts = {
    places: m.func(null, i32s(6), [], writePlaces),
    pack: m.func(null, i32s(PACK.length), [], (f) => writePack(f, spec)),
    tiles: m.func(null, i32s(TILES.length), [], (f) => writeTiles(f, spec)),
    finish: m.func(null, i32s(FINISH.length), [], (f) => writeFinish(f, spec)),
  };
  const size = finishBytes(spec.to);
  writeWork(m, (f, args, panel) => {
    const field = (name: Field): Emit => f.load("i32.load", args, 4 * FIELDS.indexOf(name));
    const [left, both, row, group, w, x, y, filters, n, end] = f.locals("i32", 10);
    return (item) => {
      f.set(n, f.op("i32.mul", f.op("i32.rem_u", item, field("nBlocks")), field("nSpan")));
      f.set(end, least(f, f.op("i32.add", n, field("nSpan")), field("n")));
      f.set(left, f.op("i32.div_u", item, field("nBlocks")));
      f.set(row, f.op("i32.mul", f.op("i32.rem_u", left, field("mBlocks")), field("mSpan")));
      f.set(filters, least(f, field("mSpan"), f.op("i32.sub", field("m"), row)));
      f.set(both, f.op("i32.div_u", left, field("mBlocks")));
      f.set(group, f.op("i32.rem_u", both, field("groups")));
      f.set(x, f.op("i32.add", field("x"), f.op("i32.mul", f.op("i32.div_u", both, field("groups")), field("xBatch"))));
      f.bump(x, f.op("i32.mul", group, field("xGroup")));
      f.set(w, f.op("i32.add", field("w"), f.op("i32.mul", group, field("wGroup"))));
      f.bump(w, f.op("i32.mul", row, f.op("i32.shl", field("units"), f.i32(2))));
      f.set(y, f.op("i32.add", field("y"), f.op("i32.mul", both, field("yGroup"))));
      f.bump(y, f.op("i32.mul", f.op("i32.add", f.op("i32.mul", row, field("n")), n), f.i32(size)));
      f.bump(row, f.op("i32.mul", group, field("m")));
      writePanels(f, { w, x, y, row, filters, n, end }, args, panel, spec, parts);
    };
  });
  return m.bytes();
}

export const integerConv = family("integer conv", integerConvModule);
