// Sliding windows over planes of float32: depthwise convolution, max and average pooling. The image is padded
// beforehand (copy.ts: zeros, or -infinity for max), so that every tap of every output lies inside; a table says how
// far each tap is from the place of an output. Sixteen outputs of a row at a time, tap by tap.
import { ModuleBuilder, type Emit, type FunctionBuilder, type Local } from "../engine/asm.ts";
import { family } from "../engine/family.ts";
import { writeWork } from "../engine/items.ts";
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

export interface WindowJob {
  readonly batch: number;
  /** Channels out, and how many of them read one channel in. */
  readonly channels: number;
  readonly multiplier?: number;
  readonly height: number;
  readonly width: number;
  readonly taps: number;
  /** The padded image; bytes from a batch and from a channel to the next. */
  readonly x: number;
  readonly xBatch: number;
  readonly xChannel: number;
  /** Result [batch, channels, height, width]. */
  readonly y: number;
  /** Address of an int32 for each tap: bytes from an output's place to it. */
  readonly table: number;
  /** Bytes from an output's place to the next one's, in a row and from row to row. */
  readonly columnStep: number;
  readonly rowStep: number;
  /** conv: weights [channels, taps]; average: counts [height, width]. */
  readonly w?: number;
  /** [channels], or 0. */
  readonly bias?: number;
}

const FIELDS = [
  "channels", "multiplier", "rows", "blocks", "height", "width", "taps", "x", "xBatch", "xChannel", "y", "table", "columnStep", "rowStep", "w", "bias",
] as const; // prettier-ignore
type Field = (typeof FIELDS)[number];

/** Items and arguments. */
export function windowJob(job: WindowJob): { readonly items: number; readonly args: Int32Array } {
  const { batch, channels, multiplier = 1, height, width, taps } = job;
  const rows = Math.min(height, Math.max(1, Math.floor(65536 / Math.max(1, width * taps))));
  const blocks = Math.ceil(height / Math.max(1, rows));
  const args = Int32Array.of(
    ...[channels, multiplier, rows, blocks, height, width, taps, job.x, job.xBatch, job.xChannel, job.y, job.table],
    ...[job.columnStep, job.rowStep, job.w ?? 0, job.bias ?? 0],
  );
  return { items: batch * channels * blocks, args };
}

/** row(x, table, taps, w, bias, y, width, columnStep): a row of outputs. average: w counts of the row. */
function writeRow(f: FunctionBuilder, { op, step, relaxed }: WindowSpec): void {
  const [x, table, taps, w, bias, y, width, columnStep] = [0, 1, 2, 3, 4, 5, 6, 7].map((i) => f.param(i));
  const sums = f.locals("v128", 4);
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
    for (const count of [4, 1])
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
  const part = m.func(null, i32s(8), [], (f) => writeRow(f, spec));
  writeWork(m, (f, args) => {
    const field = (name: Field): Emit => f.load("i32.load", args, 4 * FIELDS.indexOf(name));
    const [plane, row, last, x, y, w, bias, channel] = f.locals("i32", 8);
    const words = (value: Emit): Emit => f.op("i32.shl", value, f.i32(2));
    return (item) => {
      f.set(plane, f.op("i32.div_u", item, field("blocks")));
      f.set(row, f.op("i32.mul", f.op("i32.rem_u", item, field("blocks")), field("rows")));
      f.set(last, least(f, f.op("i32.add", row, field("rows")), field("height")));
      f.set(channel, f.op("i32.rem_u", plane, field("channels")));
      f.set(x, f.op("i32.add", field("x"), f.op("i32.mul", f.op("i32.div_u", plane, field("channels")), field("xBatch"))));
      f.bump(x, f.op("i32.mul", f.op("i32.div_u", channel, field("multiplier")), field("xChannel")));
      f.bump(x, f.op("i32.mul", row, field("rowStep")));
      f.set(y, f.op("i32.add", f.op("i32.mul", plane, field("height")), row));
      f.set(y, f.op("i32.add", field("y"), words(f.op("i32.mul", y, field("width")))));
      if (spec.op === "average") f.set(w, f.op("i32.add", field("w"), words(f.op("i32.mul", row, field("width")))));
      else f.set(w, f.op("i32.add", field("w"), words(f.op("i32.mul", channel, field("taps")))));
      f.set(bias, f.op("select", f.op("i32.add", field("bias"), words(f.get(channel))), f.i32(0), field("bias")));
      f.while(f.op("i32.lt_u", row, last), () => {
        f.run(f.call(part, x, field("table"), field("taps"), w, bias, y, field("width"), field("columnStep")));
        f.bump(x, field("rowStep"));
        f.bump(y, words(field("width")));
        if (spec.op === "average") f.bump(w, words(field("width")));
        f.bump(row, 1);
      });
    };
  });
  return m.bytes();
}

export const slidingWindow = family("window", windowModule);
