// Sliding windows over planes of float32: depthwise convolution, max and average pooling, a tile of outputs at a time
// from a panel of the image padded with zeros, or with -infinity for max (panel.ts). A table says how far each tap is
// from the place of an output. Up to 32 outputs of a row at a time, tap by tap.
import { ModuleBuilder, type Emit, type FunctionBuilder, type Local } from "../engine/asm.ts";
import { family } from "../engine/family.ts";
import { writeWork } from "../engine/items.ts";
import { PANEL_FIELDS, panelOf, panelTile, writeFill, type Panel, type PanelPlanes, type PanelShape } from "./panel.ts";
import { loadSome, storeSome, words } from "./rows.ts";
import { i32s, least, madd } from "./tiles.ts";

export interface WindowSpec {
  /** Sum of products with weights, greatest value, or sum over the count of a place. */
  readonly op: "conv" | "max" | "average";
  /** Values from an output to the next: 1, 2, or any. */
  readonly step: 1 | 2 | "any";
  readonly relaxed: boolean;
  readonly shared: boolean;
}

export interface WindowJob extends PanelShape, PanelPlanes {
  /** Address of `windowTable`. */
  readonly table: number;
  /** conv: weights [channels, multiplier, taps]; average: counts [height, width]. */
  readonly w?: number;
  /** [channels, multiplier], or 0. */
  readonly bias?: number;
}

const FIELDS = [...PANEL_FIELDS, ...(["nextRow", "taps", "table", "columnStep", "padding", "w", "bias"] as const)] as const;
type Field = (typeof FIELDS)[number];

const panelOfWindow = (shape: PanelShape): Panel => panelOf(shape, "float32");

/** An int32 for each tap: bytes from an output's place in a panel to it. */
export function windowTable(shape: PanelShape): number[] {
  const { kernel, dilations } = shape;
  const { rowBytes } = panelOfWindow(shape);
  return Array.from({ length: kernel[0] * kernel[1] }, (_, t) => {
    const row = Math.floor(t / kernel[1]);
    return row * dilations[0] * rowBytes + 4 * (t % kernel[1]) * dilations[1];
  });
}

const LOWEST = new Int32Array(Float32Array.of(-Infinity).buffer)[0];

/** Items, arguments and scratch. */
export function windowJob(
  job: WindowJob,
  { op }: Pick<WindowSpec, "op">,
): { readonly items: number; readonly args: Int32Array; readonly panelBytes: number } {
  const { kernel, strides, table, w = 0, bias = 0 } = job;
  const panel = panelOfWindow(job);
  const { items, args } = panel.args(job);
  const padding = op === "max" ? LOWEST : 0;
  const more = [strides[0] * panel.rowBytes, kernel[0] * kernel[1], table, 4 * strides[1], padding, w, bias];
  return { items, args: Int32Array.of(...args, ...more), panelBytes: panel.bytes };
}

/** row(x, table, taps, w, bias, y, width, columnStep): a row of outputs. average: w counts of the row. */
function writeRow(f: FunctionBuilder, { op, step, relaxed }: WindowSpec): void {
  const [x, table, taps, w, bias, y, width, columnStep] = [0, 1, 2, 3, 4, 5, 6, 7].map((i) => f.param(i));
  const sums = f.locals("v128", 8);
  const [v, weight, start] = f.locals("v128", 3);
  const [tap, end, factor, at] = f.locals("i32", 4);
  const places = f.locals("i32", 3);
  f.set(end, f.op("i32.add", table, f.op("i32.shl", taps, f.i32(2))));
  f.set(start, op === "max" ? f.v128f32(-Infinity) : f.v128f32(0));
  if (op === "conv") f.if(bias, () => f.set(start, f.load("v128.load32_splat", bias)));
  const add = (sum: Local): void => {
    if (op === "conv") madd(f, relaxed, sum, weight, v);
    else f.set(sum, f.op(op === "max" ? "f32x4.max" : "f32x4.add", sum, v));
  };
  const overTaps = (count: number, load: (i: number) => void): void => {
    for (let i = 0; i < count; i++) f.set(sums[i], f.get(start));
    f.set(tap, f.get(table));
    f.set(factor, f.get(w));
    f.while(f.op("i32.lt_u", tap, end), () => {
      f.set(at, f.op("i32.add", x, f.load("i32.load", tap)));
      if (op === "conv") f.set(weight, f.load("v128.load32_splat", factor));
      for (let i = 0; i < count; i++) {
        load(i);
        add(sums[i]);
      }
      f.bump(tap, 4);
      f.bump(factor, 4);
    });
  };
  /** Four outputs: side by side, every other value (nothing beyond the last is read), or each by itself. */
  const load = (i: number): void => {
    if (step === 1) f.set(v, f.load("v128.load", at, 16 * i));
    else f.set(v, f.shuffle(words([0, 2, 5, 7]), f.load("v128.load", at, 32 * i), f.load("v128.load", at, 32 * i + 12)));
  };
  const advance = (count: number): void => {
    f.bump(x, f.op("i32.mul", columnStep, f.i32(count)));
    f.bump(y, 4 * count);
    if (op === "average") f.bump(w, 4 * count);
    f.bump(width, -count);
  };
  if (step !== "any")
    // eight sums, so that a tap does not wait for the one before it
    for (const count of step === 1 ? [8, 4, 1] : [4, 1])
      f.while(f.op("i32.ge_u", width, f.i32(4 * count)), () => {
        overTaps(count, load);
        for (let i = 0; i < count; i++) {
          if (op === "average") f.set(sums[i], f.op("f32x4.div", sums[i], f.load("v128.load", w, 16 * i)));
          f.store("v128.store", y, 16 * i, sums[i]);
        }
        advance(4 * count);
      });
  const some = f.local("i32");
  f.while(f.op("i32.gt_s", width, f.i32(0)), () => {
    // beyond the last output it is repeated
    places.forEach((place, i) => f.set(place, f.op("i32.mul", columnStep, least(f, f.i32(i + 1), f.op("i32.sub", width, f.i32(1))))));
    f.set(some, least(f, width, f.i32(4)));
    overTaps(1, () => {
      f.set(v, f.load("v128.load32_zero", at));
      places.forEach((place, i) => f.set(v, f.loadLane("v128.load32_lane", f.op("i32.add", at, place), 0, i + 1, v)));
    });
    f.if(
      f.op("i32.eq", some, f.i32(4)),
      () => {
        if (op === "average") f.set(sums[0], f.op("f32x4.div", sums[0], f.load("v128.load", w)));
        f.store("v128.store", y, 0, sums[0]);
      },
      () => {
        if (op === "average") {
          loadSome(f, v, w, some, f.constantF32(1));
          f.set(sums[0], f.op("f32x4.div", sums[0], v));
        }
        storeSome(f, y, some, sums[0]);
      },
    );
    advance(4);
  });
}

/** A module whose `work` slides windows; its arguments are `windowJob`'s. */
export function windowModule(spec: WindowSpec): Uint8Array<ArrayBuffer> {
  const m = new ModuleBuilder({ shared: spec.shared });
  const fill = m.func(null, i32s(6), [], (f) => writeFill(f, "float32"));
  const part = m.func(null, i32s(8), [], (f) => writeRow(f, spec));
  writeWork(m, (f, args, panel) => {
    const field = (name: Field): Emit => f.load("i32.load", args, 4 * FIELDS.indexOf(name));
    const { tile, place, copy, outputAt } = panelTile(f, field, "float32", fill);
    const [x, y, w, bias] = f.locals("i32", 4);
    const words = (value: Emit): Emit => f.op("i32.shl", value, f.i32(2));
    return (item) => {
      place(item);
      copy(panel, field("padding"));
      f.set(y, outputAt(4));
      const first =
        spec.op === "average"
          ? f.op("i32.add", f.op("i32.mul", tile.oy, field("outWidth")), tile.ox)
          : f.op("i32.mul", tile.filter, field("taps"));
      f.set(w, f.op("i32.add", field("w"), words(first)));
      f.set(bias, f.op("select", f.op("i32.add", field("bias"), words(f.get(tile.filter))), f.i32(0), field("bias")));
      f.set(x, f.get(panel));
      f.while(tile.rows, () => {
        f.run(f.call(part, x, field("table"), field("taps"), w, bias, y, tile.columns, field("columnStep")));
        f.bump(x, field("nextRow"));
        f.bump(y, words(field("outWidth")));
        if (spec.op === "average") f.bump(w, words(field("outWidth")));
        f.bump(tile.rows, -1);
      });
    };
  });
  return m.bytes();
}

export const slidingWindow = family("window", windowModule);
