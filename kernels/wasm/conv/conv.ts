// Convolution of images of bytes with integer weights, in groups: exact int32 sums, finished as finish.ts has it. An
// unrolled image never exists: 32 outputs at a time, the taps are packed from the padded image, where neighbours lie
// side by side, into a panel of 12 KB, and all filters pass over it in tiles (tiles.ts). A table says how far each
// tap is from the place of an output, so strides, dilations and one or two dimensions are the same code.
//
// Styles: "words" multiplies pairs of i16 (i32x4.dot_i16x8_s), activations less their zero point and weights less
// theirs, -255..255 both: exact. "bytes" multiplies four bytes at once where the relaxed dot product is exact for
// unsigned or signed ones; the zero point of activations is an addend of each filter then (`offsets`).
//
// Weights: [groups][tiles of filters][units][filters], a word each: 2 (words) or 4 (bytes) taps of a filter.
import { ModuleBuilder, type Emit, type FunctionBuilder, type FunctionRef, type Local, type Operand } from "../engine/asm.ts";
import { family } from "../engine/family.ts";
import { writeWork } from "../engine/items.ts";
import { i32s, least } from "../nn/tiles.ts";
import { PACK, PANEL, ROW, SPAN, unitTaps, writePack, writePlaces } from "./taps.ts";
import { finishBytes, ROUND } from "./finish.ts";
import { FIELDS, FINISH, TILES, tileFilters, tileHeights, writeFinish, writeTiles, type Field, type IntegerConvSpec } from "./tiles.ts";

/** Units of a last chunk from which on results leave late. */
const LATE = 24;
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
  /** More channels in a group than one. */
  readonly isDeep: boolean;
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
  // two tiles of four are in one block
  while (mSpan < m && (m % mSpan === 1 || m % mSpan === 2)) mSpan += tile;
  const [mBlocks, nBlocks] = [Math.ceil(m / mSpan), Math.ceil(n / nSpan)];
  // chunks of equal length
  const chunk = Math.ceil(units / Math.ceil(units / CHUNK));
  const wGroup = 4 * units * tileHeights(spec.style, m, job.isDeep).reduce((sum, height) => sum + height, 0);
  const args = Int32Array.of(
    ...[groups, mBlocks, nBlocks, m, n, units, chunk, mSpan, nSpan, job.w, wGroup, job.offsets, job.factors, job.bias],
    ...[job.x, job.xBatch, job.xGroup, job.xZero, job.y, finishBytes(spec.to) * m * n, job.yZero, bits(job.low), bits(job.high)],
    ...[job.table, job.width, job.columnStep, job.rowStep, Number(job.isDeep), bits(ROUND), job.yZero - bits(ROUND)],
  );
  return { items: mBlocks * nBlocks * batch * groups, args, panelBytes: PANEL_BYTES + ROW * mSpan + ROW + 64 };
}

type Parts = Readonly<Record<"places" | "pack" | "tiles" | "late" | "finish", FunctionRef>>;

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
  const [columns, second, done, count, sums, places, spare, width, ready, y, some] = f.locals("i32", 11);
  const size = finishBytes(spec.to);
  f.set(sums, f.op("i32.add", panel, f.i32(PANEL_BYTES)));
  f.set(places, f.op("i32.add", sums, f.op("i32.mul", field("mSpan"), f.i32(ROW))));
  f.set(spare, f.op("i32.add", places, f.i32(ROW)));
  const ofRow = (name: Field): Emit => f.op("i32.add", field(name), f.op("i32.shl", at.row, f.i32(2)));
  const yStep = f.op("i32.mul", field("n"), f.i32(size));
  f.while(f.op("i32.lt_u", at.n, at.end), () => {
    f.set(columns, least(f, f.op("i32.sub", at.end, at.n), f.i32(PANEL)));
    f.set(width, f.op("i32.shl", f.op("i32.shr_u", f.op("i32.add", columns, f.i32(7)), f.i32(3)), f.i32(5)));
    f.set(ready, f.i32(0));
    f.set(second, f.i32(0));
    f.if(f.op("i32.gt_u", columns, f.i32(SPAN)), () => f.set(second, f.op("i32.sub", columns, f.i32(SPAN))));
    f.run(f.call(parts.places, places, at.n, f.op("i32.sub", at.end, f.i32(1)), field("width"), field("columnStep"), field("rowStep")));
    f.set(done, f.i32(0));
    f.doWhile(
      () => {
        f.set(count, least(f, f.op("i32.sub", field("units"), done), field("chunk")));
        const pack = (offset: number, of: Operand): void => {
          const taps = f.op("i32.add", field("table"), f.op("i32.mul", done, f.i32(4 * unitTaps(spec.style))));
          const [from, to] = [f.op("i32.add", places, f.i32(offset)), f.op("i32.add", panel, f.i32(offset))];
          f.run(f.call(parts.pack, at.x, from, taps, to, count, field("xZero"), of));
        };
        pack(0, least(f, columns, f.i32(SPAN)));
        f.if(second, () => pack(4 * SPAN, second));
        const isLast = f.op("i32.ge_u", f.op("i32.add", done, count), field("units"));
        const isLate = f.op("i32.and", isLast, f.op("i32.ge_u", count, f.i32(LATE)));
        if (spec.unroll > 1) f.if(isLate, () => f.set(ready, f.op("i32.shl", f.op("i32.shr_u", columns, f.i32(3)), f.i32(5))));
        const tiles = (offset: Operand, bytes: Operand, late: boolean): void => {
          const [from, to] = [panel, sums].map((address) => f.op("i32.add", address, offset));
          const rows = [ofRow("offsets"), ofRow("factors"), ofRow("bias")] as const;
          f.run(f.call(parts[late ? "late" : "tiles"], at.w, from, to, count, done, at.filters, bytes, args, at.y, yStep, ...rows));
        };
        if (spec.unroll > 1) f.if(ready, () => tiles(f.i32(0), ready, true));
        f.if(f.op("i32.gt_u", width, ready), () => tiles(ready, f.op("i32.sub", width, ready), false));
        f.bump(done, count);
      },
      f.op("i32.lt_u", done, field("units")),
    );
    f.set(y, f.op("i32.add", at.y, size === 1 ? f.op("i32.shr_u", ready, f.i32(2)) : ready));
    f.bump(columns, f.op("i32.sub", f.i32(0), f.op("i32.shr_u", ready, f.i32(2))));
    f.while(columns, () => {
      f.set(some, least(f, columns, f.i32(SPAN)));
      const rows = [ofRow("offsets"), ofRow("factors"), ofRow("bias"), args, spare] as const;
      f.run(f.call(parts.finish, f.op("i32.add", sums, ready), at.filters, some, y, yStep, ...rows));
      f.bump(columns, f.op("i32.sub", f.i32(0), some));
      f.bump(ready, 4 * SPAN);
      f.bump(y, SPAN * size);
    });
    f.bump(at.y, size * PANEL);
    f.bump(at.n, PANEL);
  });
}

/** A module whose `work` convolves; its arguments are `integerConvJob`'s. */
export function integerConvModule(spec: IntegerConvSpec): Uint8Array<ArrayBuffer> {
  const m = new ModuleBuilder({ shared: spec.shared });
  const tiles = m.func(null, i32s(TILES.length), [], (f) => writeTiles(f, spec, false));
  const parts: Parts = {
    places: m.func(null, i32s(6), [], writePlaces),
    pack: m.func(null, i32s(PACK.length), [], (f) => writePack(f, spec)),
    tiles,
    late: spec.unroll > 1 ? m.func(null, i32s(TILES.length), [], (f) => writeTiles(f, spec, true)) : tiles,
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
