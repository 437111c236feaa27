// Integer convolution of one channel at a time (depthwise, with a multiplier or not), a tile of outputs an item. What
// lies under a tile is copied into a panel as i16, less its zero point, with the padding about it (panel.ts). A vector
// of eight neighbours there is four pairs, as i32x4.dot_i16x8_s takes them: of a pair (x[c], x[c + 1]) the output at c
// takes taps (t, t + 1), the one at c + 1 taps (t - 1, t). So outputs at even and at odd columns have sums and words of
// their own, nothing is shuffled, and every two columns of a kernel are one load (a "shift"). With a stride of 2 only
// the even ones are there; with dilation each tap is a shift, of words (t, none) and (none, t).
//
// Where the relaxed dot product is exact for whole bytes ("bytes"), the panel holds bytes, and four taps of a row are a
// word: a swizzle brings four neighbours to each of four outputs.
//
// Weights come as conv.ts has them; a table says which taps make up the words of the shifts.
import { ModuleBuilder, type Emit, type FunctionBuilder, type FunctionRef, type Local } from "../engine/asm.ts";
import { family } from "../engine/family.ts";
import { writeWork } from "../engine/items.ts";
import { PANEL_FIELDS, panelOf, panelTile, writeFill, type PanelElement, type PanelPlanes, type PanelShape } from "../nn/panel.ts";
import { i32s, least } from "../nn/tiles.ts";
import { tileFilters } from "./tiles.ts";
import { finishBytes, finishVector, moveSome, narrowCodes, zeroTerm, type Finish } from "./finish.ts";
import { unitTaps, type PackSpec } from "./taps.ts";

type Style = PackSpec["style"];

export interface DepthwiseSpec {
  readonly style: Style;
  readonly unsigned: boolean;
  readonly to: Finish;
  readonly bias: boolean;
  /** Values from an output to the next of its row. */
  readonly step: 1 | 2;
  /** Shifts per turn of the inner loop; "3x3" has no loop. */
  readonly unroll: 1 | 2 | 3 | "3x3";
  readonly shared: boolean;
}

/** The shifts of a row of the kernel. */
interface Shifts {
  readonly unroll: 1 | 2 | 3;
  /** A multiple of `unroll`. */
  readonly count: number;
  /** Columns from one to the next. */
  readonly columns: number;
  /** The columns of the kernel that make up the words of shift s: of words at even, then at odd outputs. */
  readonly words: (s: number) => readonly number[];
}

function shiftsOf({ kernel, strides, dilations }: PanelShape, style: Style): Shifts {
  const isDilated = dilations[1] > 1;
  const step = strides[1];
  if (style !== "words") {
    const needed = isDilated ? kernel[1] : Math.ceil(kernel[1] / 4);
    const unroll = needed % 3 === 0 ? 3 : needed % 2 === 0 ? 2 : 1;
    const words = (s: number): number[] => (isDilated ? [s, -1, -1, -1] : [0, 1, 2, 3].map((i) => 4 * s + i));
    return { unroll, count: needed, columns: isDilated ? dilations[1] : 4, words };
  }
  const needed = isDilated ? kernel[1] : step === 1 ? (kernel[1] >> 1) + 1 : (kernel[1] + 1) >> 1;
  const [twos, threes] = [2, 3].map((unroll) => Math.ceil(needed / unroll) * unroll);
  const even = (s: number): number[] => (isDilated ? [s, -1] : [2 * s, 2 * s + 1]);
  const odd = (s: number): number[] => (isDilated ? [-1, s] : [2 * s - 1, 2 * s]);
  return {
    unroll: threes <= twos ? 3 : 2,
    count: Math.min(twos, threes),
    columns: isDilated ? dilations[1] : 2,
    words: (s) => (step === 1 ? [...even(s), ...odd(s)] : even(s)),
  };
}

export const depthwiseUnroll = (shape: PanelShape, style: Style): DepthwiseSpec["unroll"] =>
  shape.kernel[0] === 3 && shape.kernel[1] === 3 && shape.dilations[1] === 1 ? "3x3" : shiftsOf(shape, style).unroll;

/** int32 [kernel rows][shifts][taps of its words]: where in a filter's packed words a tap is, -1 for none. */
export function depthwiseTable(shape: PanelShape, style: Style): Int32Array {
  const { kernel } = shape;
  const { count, words } = shiftsOf(shape, style);
  const taps = unitTaps(style);
  const table: number[] = [];
  for (let row = 0; row < kernel[0]; row++)
    for (let s = 0; s < count; s++)
      for (const column of words(s)) {
        const tap = row * kernel[1] + column;
        const unit = Math.floor(tap / taps) * 4 * tileFilters(style);
        table.push(column < 0 || column >= kernel[1] ? -1 : unit + (tap % taps) * (4 / taps));
      }
  return Int32Array.from(table);
}

export interface DepthwiseJob extends PanelShape, PanelPlanes {
  /** Addresses: packed weights; int32 offsets, float32 factors and bias of each filter; `depthwiseTable`. */
  readonly w: number;
  readonly offsets: number;
  readonly factors: number;
  readonly bias: number;
  readonly table: number;
  /** Zero point of the image. */
  readonly xZero: number;
  /** Zero point of codes, and bounds as conv.ts has them. */
  readonly yZero: number;
  readonly low: number;
  readonly high: number;
}

const FIELDS = [
  ...PANEL_FIELDS,
  ...([
    "tapBytes",
    "shiftBytes",
    "turns",
    "entries",
    "units",
    "w",
    "offsets",
    "factors",
    "bias",
    "table",
    "xZero",
    "yZero",
    "low",
    "high",
  ] as const),
] as const;
type Field = (typeof FIELDS)[number];

/** The argument that is the image's zero point: it may be known only when the job runs. */
export const DEPTHWISE_ZERO = FIELDS.indexOf("xZero");

const bits = (value: number): number => new Int32Array(Float32Array.of(value).buffer)[0];

/** Outputs of a row that are computed at once. */
const SPAN = 16;
/** Bytes of scratch for the outputs of a short row, before words and panel. */
const SPARE = 4 * SPAN;

const elementOf = ({ style, unsigned }: Pick<DepthwiseSpec, "style" | "unsigned">): PanelElement =>
  style === "words" ? (unsigned ? "uint8" : "int8") : (style === "bytes-u") === unsigned ? "bytes" : "flipped bytes";

/** Items, arguments and scratch of a job. */
export function depthwiseJob(
  job: DepthwiseJob,
  style: Style,
): { readonly items: number; readonly args: Int32Array; readonly panelBytes: number } {
  const { kernel, strides, dilations } = job;
  const { count, columns: shift, unroll, words } = shiftsOf(job, style);
  const taps = unitTaps(style);
  const isWord = style === "words";
  // the last vector of a span begins 8 columns before its end, and has 16
  const beyond = isWord ? 0 : 8;
  const reach = (columns: number): number => strides[1] * Math.max(columns, SPAN) + beyond + (count - 1) * shift;
  const panel = panelOf(job, isWord ? "int8" : "bytes", reach);
  const { items, args } = panel.args(job);
  const entries = kernel[0] * count * words(0).length;
  const units = Math.ceil((kernel[0] * kernel[1]) / taps);
  return {
    items,
    args: Int32Array.of(
      ...args,
      ...[dilations[0] * panel.rowBytes, (isWord ? 2 : 1) * shift, count / unroll, entries, units, job.w, job.offsets, job.factors],
      ...[job.bias, job.table, job.xZero, job.yZero, bits(job.low), bits(job.high)],
    ),
    panelBytes: SPARE + 16 * Math.ceil(((4 / taps) * entries) / 16) + panel.bytes,
  };
}

type Fields = (name: Field) => Emit;
const fieldsOf =
  (f: FunctionBuilder, args: Local): Fields =>
  (name) =>
    f.load("i32.load", args, 4 * FIELDS.indexOf(name));

const DOT = "i32x4.relaxed_dot_i8x16_i7x16_add_s";
const ROWS = ["x", "words", "y", "filter", "args", "spare", "width", "rows"] as const;
const INTERLEAVED = Array.from({ length: 16 }, (_, i) => (i % 2) * 8 + (i >> 1));

/** rows(...): the rows of outputs of a tile, `width` each; x: the panel. */
function writeRows(f: FunctionBuilder, { style, to, bias, step, unroll }: DepthwiseSpec): void {
  const isWord = style === "words";
  const [x, words, y, filter, args, spare, width, rows] = ROWS.map((_, i) => f.param(i));
  const [at, start, tapRow, from, word, end, turns, target, columns, out, shiftBytes, tapBytes, xStep, yStep] = f.locals("i32", 14);
  const sums = f.locals("v128", 4);
  const values = f.locals("v128", step === 1 ? 2 : 4);
  const [even, odd, first, factor, added, low, high, zero] = f.locals("v128", 8);
  const size = finishBytes(to);
  const field = fieldsOf(f, args);
  const vector = (name: Field): Emit => f.load("v128.load32_splat", args, 4 * FIELDS.indexOf(name));
  const own = (name: Field): Emit => f.load("v128.load32_splat", f.op("i32.add", field(name), f.op("i32.shl", filter, f.i32(2))));
  const dot = (sum: Local, v: Local, w: Local): void => f.set(sum, f.op("i32x4.add", sum, f.op("i32x4.dot_i16x8_s", v, w)));
  const perShift = isWord && step === 1 ? 2 : 1;
  const neighbours = (isWord ? [] : [0, 1]).map((part) =>
    f.constant(`neighbours ${part}`, f.v128(Array.from({ length: 16 }, (_, i) => 4 * part + step * (i >> 2) + (i & 3)))),
  );
  /** The word `i` words on, and its fellow. */
  const products = (from: Local, offset: number, at: Local, i: number): void => {
    if (!isWord) {
      f.set(even, f.load("v128.load32_splat", at, 4 * i));
      sums.forEach((sum, j) => {
        // of stride 1 eight outputs have their neighbours in a vector, of stride 2 four
        const [vector, part] = step === 1 ? [j >> 1, j & 1] : [j, 0];
        if (part === 0) f.set(values[0], f.load("v128.load", from, offset + 8 * vector));
        f.set(sum, f.op(DOT, even, f.op("i8x16.relaxed_swizzle", values[0], neighbours[part]), sum));
      });
      return;
    }
    const words = [even, odd].slice(0, perShift);
    words.forEach((w, p) => f.set(w, f.load("v128.load32_splat", at, 4 * (i * perShift + p))));
    values.forEach((v, j) => f.set(v, f.load("v128.load", from, offset + 16 * j)));
    words.forEach((w, p) => values.forEach((v, j) => dot(sums[2 * p + j], v, w)));
  };
  /** All taps from `tapRow` on. */
  const taps = (): void => {
    if (unroll === "3x3") {
      for (let r = 0; r < 3; r++) {
        if (isWord) for (let s = 0; s < 2; s++) products(tapRow, 4 * s, words, 2 * r + s);
        else products(tapRow, 0, words, r);
        if (r < 2) f.bump(tapRow, tapBytes);
      }
      return;
    }
    f.set(word, f.get(words));
    f.doWhile(
      () => {
        f.set(from, f.get(tapRow));
        f.set(turns, field("turns"));
        f.doWhile(() => {
          for (let s = 0; s < unroll; s++) {
            products(from, 0, word, s);
            f.bump(from, shiftBytes);
          }
          f.bump(word, 4 * perShift * unroll);
          f.bump(turns, -1);
        }, turns);
        f.bump(tapRow, tapBytes);
      },
      f.op("i32.lt_u", word, end),
    );
  };
  if (to !== "int32") {
    f.set(factor, own("factors"));
    f.set(low, vector("low"));
    f.set(high, vector("high"));
    f.set(zero, zeroTerm(f, vector("yZero")));
  }
  if (bias) f.set(added, own("bias"));
  f.set(first, own("offsets"));
  f.set(shiftBytes, field("shiftBytes"));
  f.set(tapBytes, field("tapBytes"));
  f.set(end, f.op("i32.add", words, entryBytes(f, field, style)));
  f.set(xStep, f.op("i32.mul", field("rowStep"), field("rowBytes")));
  f.set(yStep, f.op("i32.mul", field("outWidth"), f.i32(size)));
  f.set(columns, least(f, width, f.i32(SPAN)));
  f.set(target, f.op("i32.sub", width, columns));
  const block = (): void => {
    f.set(start, least(f, at, target));
    const columnBytes = f.op("i32.shl", start, f.i32(isWord ? step : step - 1));
    f.set(tapRow, f.op("i32.add", x, columnBytes));
    for (const sum of sums) f.set(sum, first);
    taps();
    for (const sum of sums) finishVector(f, to, sum, factor, bias ? added : null, { low, high, zero });
    f.set(out, f.op("i32.add", y, size === 1 ? f.get(start) : f.op("i32.shl", start, f.i32(2))));
    f.set(out, f.op("select", out, spare, f.op("i32.eq", columns, f.i32(SPAN))));
    if (to === "int8" || to === "uint8") {
      f.set(even, narrowCodes(f, to, sums));
      f.store("v128.store", out, 0, perShift === 2 ? f.shuffle(INTERLEAVED, even, even) : f.get(even));
    } else if (perShift === 2) {
      const zip = (half: number): number[] => Array.from({ length: 16 }, (_, i) => ((i >> 2) % 2) * 16 + 8 * half + 4 * (i >> 3) + (i % 4));
      for (let i = 0; i < 4; i++) f.store("v128.store", out, 16 * i, f.shuffle(zip(i % 2), sums[i >> 1], sums[2 + (i >> 1)]));
    } else sums.forEach((sum, i) => f.store("v128.store", out, 16 * i, sum));
    f.bump(at, SPAN);
  };
  f.doWhile(() => {
    f.set(at, f.i32(0));
    f.doWhile(block, f.op("i32.lt_u", at, width));
    f.if(f.op("i32.lt_u", columns, f.i32(SPAN)), () => {
      f.set(from, f.get(spare));
      f.set(out, f.get(y));
      f.set(turns, f.op("i32.mul", columns, f.i32(size)));
      moveSome(f, from, out, turns);
    });
    f.bump(x, xStep);
    f.bump(y, yStep);
    f.bump(rows, -1);
  }, rows);
}

/** Bytes of the words of a filter. */
const entryBytes = (f: FunctionBuilder, field: Fields, style: Style): Emit =>
  style === "words" ? f.op("i32.shl", field("entries"), f.i32(1)) : field("entries");

/** words(to, w, table, count): the taps of a filter's words. */
function writeWords(f: FunctionBuilder, style: Style): void {
  const [to, w, table, count] = [0, 1, 2, 3].map((i) => f.param(i));
  const at = f.local("i32");
  const [load, store, bytes] = style === "words" ? ["i32.load16_u", "i32.store16", 2] : ["i32.load8_u", "i32.store8", 1];
  f.while(count, () => {
    f.set(at, f.load("i32.load", table));
    f.if(
      f.op("i32.lt_s", at, f.i32(0)),
      () => f.store(store, to, 0, f.i32(0)),
      () => f.store(store, to, 0, f.load(load, f.op("i32.add", w, at))),
    );
    f.bump(to, bytes);
    f.bump(table, 4);
    f.bump(count, -1);
  });
}

interface Parts {
  readonly fill: FunctionRef;
  readonly words: FunctionRef;
  readonly rows: FunctionRef;
}

/** An item: words and panel of a tile, then its rows. */
function writeTile(f: FunctionBuilder, args: Local, scratch: Local, spec: DepthwiseSpec, parts: Parts): (item: Local) => void {
  const field = fieldsOf(f, args);
  const { tile, place, copy, outputAt } = panelTile(f, field, elementOf(spec), parts.fill);
  const [inChannel, words, panel, w] = f.locals("i32", 4);
  return (item) => {
    place(item);
    f.set(inChannel, f.op("i32.rem_u", tile.filter, field("multiplier")));
    // a tile of filters of a channel, then the filter's word in each unit
    const filters = f.i32(tileFilters(spec.style));
    f.set(w, f.op("i32.div_u", f.op("i32.add", field("multiplier"), f.i32(tileFilters(spec.style) - 1)), filters));
    f.set(w, f.op("i32.mul", f.op("i32.add", f.op("i32.mul", tile.channel, w), f.op("i32.div_u", inChannel, filters)), field("units")));
    f.set(w, f.op("i32.add", f.op("i32.mul", w, filters), f.op("i32.rem_u", inChannel, filters)));
    f.set(w, f.op("i32.shl", w, f.i32(2)));
    f.set(words, f.op("i32.add", scratch, f.i32(SPARE)));
    f.run(f.call(parts.words, words, f.op("i32.add", field("w"), w), field("table"), field("entries")));
    f.set(panel, f.op("i32.and", f.op("i32.add", entryBytes(f, field, spec.style), f.i32(15)), f.i32(-16)));
    f.set(panel, f.op("i32.add", words, panel));
    // padding as the product sees it
    const isFlipped = elementOf(spec) === "flipped bytes";
    copy(panel, isFlipped ? f.op("i32.xor", field("xZero"), f.i32(128)) : field("xZero"));
    f.run(f.call(parts.rows, panel, words, outputAt(finishBytes(spec.to)), tile.filter, args, scratch, tile.columns, tile.rows));
  };
}

/** A module whose `work` convolves; its arguments are `depthwiseJob`'s. */
export function depthwiseModule(spec: DepthwiseSpec): Uint8Array<ArrayBuffer> {
  const m = new ModuleBuilder({ shared: spec.shared });
  const parts = {
    fill: m.func(null, i32s(6), [], (f) => writeFill(f, elementOf(spec))),
    words: m.func(null, i32s(4), [], (f) => writeWords(f, spec.style)),
    rows: m.func(null, i32s(ROWS.length), [], (f) => writeRows(f, spec)),
  };
  writeWork(m, (f, args, scratch) => writeTile(f, args, scratch, spec, parts));
  return m.bytes();
}

export const integerDepthwise = family("integer depthwise", depthwiseModule);
