// Integer convolution of one channel at a time (depthwise, with a multiplier or not): 16 outputs of a row at once,
// pairs of taps multiplied as i16 in the order in which they lie, nothing packed. Sums are finished as finish.ts has
// it. The last outputs of a row are computed with those before them, so that no row has a tail; of rows shorter than
// 16, what lies beyond is read (16 values past the image) and dropped.
//
// Weights lie as conv.ts has them, style "words".
import { ModuleBuilder, type Emit, type FunctionBuilder, type Local } from "../engine/asm.ts";
import { family } from "../engine/family.ts";
import { writeWork } from "../engine/items.ts";
import { i32s, least } from "../nn/tiles.ts";
import { FILTERS, type IntegerConvJob } from "./conv.ts";
import { finishBytes, finishVector, moveSome, narrowCodes, type Finish } from "./finish.ts";

export interface DepthwiseSpec {
  readonly unsigned: boolean;
  readonly to: Finish;
  readonly bias: boolean;
  /** Values from an output to the next of its row. */
  readonly step: 1 | 2;
  readonly shared: boolean;
}

/** Bytes past the image that may be read. */
export const DEPTHWISE_SLACK = 32;

const FIELDS = [
  "channels", "multiplier", "rows", "blocks", "height", "width", "units", "w", "wGroup", "offsets", "factors", "bias", "x", "xBatch", "xGroup", "xZero",
  "y", "yZero", "low", "high", "table", "rowStep",
] as const; // prettier-ignore
type Field = (typeof FIELDS)[number];

/** The argument that is the image's zero point: it may be known only when the job runs. */
export const DEPTHWISE_ZERO = FIELDS.indexOf("xZero");

const bits = (value: number): number => new Int32Array(Float32Array.of(value).buffer)[0];

/** Items, arguments and scratch of a job; its groups have one channel. */
export function depthwiseJob(job: IntegerConvJob): { readonly items: number; readonly args: Int32Array; readonly panelBytes: number } {
  const { batch, groups, filters, outputs, taps, width } = job;
  const height = outputs / width;
  const units = Math.ceil(taps / 2);
  const rows = Math.min(height, Math.max(1, Math.floor(65536 / (width * taps))));
  const blocks = Math.ceil(height / rows);
  const wGroup = Math.ceil(filters / FILTERS) * units * 4 * FILTERS;
  const args = Int32Array.of(
    ...[groups * filters, filters, rows, blocks, height, width, units, job.w, wGroup, job.offsets, job.factors, job.bias],
    ...[job.x, job.xBatch, job.xGroup, job.xZero, job.y, job.yZero, bits(job.low), bits(job.high), job.table, job.rowStep],
  );
  return { items: batch * groups * filters * blocks, args, panelBytes: 64 };
}

const ROW = ["x", "w", "y", "channel", "args", "spare"] as const;

/** row(...): a row of outputs of a channel. */
function writeRow(f: FunctionBuilder, { unsigned, to, bias, step }: DepthwiseSpec): void {
  const [x, w, y, channel, args, spare] = ROW.map((_, i) => f.param(i));
  const [at, start, base, tap, end, weights, width, units, target, columns, from] = f.locals("i32", 11);
  const sums = f.locals("v128", 4);
  const [v0, v1, low, high, pair, zeros, first, factor, added, least4, most4, zero] = f.locals("v128", 12);
  const size = finishBytes(to);
  const field = (name: Field): Emit => f.load("i32.load", args, 4 * FIELDS.indexOf(name));
  const word = (name: Field): Emit => f.load("v128.load32_splat", args, 4 * FIELDS.indexOf(name));
  const own = (name: Field): Emit => f.load("v128.load32_splat", f.op("i32.add", field(name), f.op("i32.shl", channel, f.i32(2))));
  const extend = (half: "low" | "high", of: Local): Emit => f.op(`i16x8.extend_${half}_i8x16_${unsigned ? "u" : "s"}`, of);
  const dot = (sum: Local, of: Emit | Local): void => f.set(sum, f.op("i32x4.add", sum, f.op("i32x4.dot_i16x8_s", of, pair)));
  const evens = Array.from({ length: 16 }, (_, i) => (i < 8 ? 2 * i : 2 * i + 1));
  const load = (offset: number): Emit => {
    const place = (more: number): Emit => f.load("v128.load", f.op("i32.add", base, f.load("i32.load", tap, offset)), more);
    return step === 1 ? place(0) : f.shuffle(evens, place(0), place(15));
  };
  const zip = (half: number): number[] => Array.from({ length: 16 }, (_, i) => (i % 2) * 16 + 8 * half + (i >> 1));
  /** All taps, in pairs. */
  const eachPair = (each: () => void): void => {
    f.set(tap, field("table"));
    f.set(end, f.op("i32.add", tap, f.op("i32.shl", units, f.i32(3))));
    f.set(weights, w);
    f.doWhile(
      () => {
        f.set(pair, f.load("v128.load32_splat", weights));
        each();
        f.bump(tap, 8);
        f.bump(weights, 4 * FILTERS);
      },
      f.op("i32.lt_u", tap, end),
    );
  };
  f.set(width, field("width"));
  f.set(units, field("units"));
  if (to !== "int32") {
    f.set(factor, own("factors"));
    f.set(least4, word("low"));
    f.set(most4, word("high"));
    f.set(zero, word("yZero"));
  }
  if (bias) f.set(added, own("bias"));
  // what the zero point adds to every sum
  f.set(zeros, f.op("i16x8.splat", f.op("i32.sub", f.i32(0), field("xZero"))));
  f.set(first, own("offsets"));
  eachPair(() => dot(first, zeros));
  f.set(columns, least(f, width, f.i32(16)));
  f.set(target, f.op("i32.sub", width, columns));
  f.doWhile(
    () => {
      f.set(start, least(f, at, target));
      f.set(base, f.op("i32.add", x, step === 1 ? f.get(start) : f.op("i32.shl", start, f.i32(1))));
      for (const sum of sums) f.set(sum, first);
      eachPair(() => {
        f.set(v0, load(0));
        f.set(v1, load(4));
        f.set(low, f.shuffle(zip(0), v0, v1));
        f.set(high, f.shuffle(zip(1), v0, v1));
        dot(sums[0], extend("low", low));
        dot(sums[1], extend("high", low));
        dot(sums[2], extend("low", high));
        dot(sums[3], extend("high", high));
      });
      const put = f.op("i32.add", y, size === 1 ? f.get(start) : f.op("i32.shl", start, f.i32(2)));
      f.set(from, f.op("select", put, spare, f.op("i32.eq", columns, f.i32(16))));
      sums.forEach((sum, i) => {
        finishVector(f, to, sum, factor, bias ? added : null, { low: least4, high: most4, zero });
        if (size === 4) f.store("v128.store", from, 16 * i, sum);
      });
      if (to === "int8" || to === "uint8") f.store("v128.store", from, 0, narrowCodes(f, to, sums));
      f.bump(at, 16);
    },
    f.op("i32.lt_u", at, width),
  );
  f.if(f.op("i32.lt_u", columns, f.i32(16)), () => {
    f.set(from, spare);
    f.set(target, y);
    f.set(columns, f.op("i32.mul", columns, f.i32(size)));
    moveSome(f, from, target, columns);
  });
}

/** A module whose `work` convolves; its arguments are `depthwiseJob`'s. */
export function depthwiseModule(spec: DepthwiseSpec): Uint8Array<ArrayBuffer> {
  const m = new ModuleBuilder({ shared: spec.shared });
  const part = m.func(null, i32s(ROW.length), [], (f) => writeRow(f, spec));
  const size = finishBytes(spec.to);
  writeWork(m, (f, args, panel) => {
    const field = (name: Field): Emit => f.load("i32.load", args, 4 * FIELDS.indexOf(name));
    const [plane, channel, group, inGroup, row, last, x, w, y] = f.locals("i32", 9);
    return (item) => {
      f.set(plane, f.op("i32.div_u", item, field("blocks")));
      f.set(row, f.op("i32.mul", f.op("i32.rem_u", item, field("blocks")), field("rows")));
      f.set(last, least(f, f.op("i32.add", row, field("rows")), field("height")));
      f.set(channel, f.op("i32.rem_u", plane, field("channels")));
      f.set(group, f.op("i32.div_u", channel, field("multiplier")));
      f.set(inGroup, f.op("i32.rem_u", channel, field("multiplier")));
      f.set(x, f.op("i32.add", field("x"), f.op("i32.mul", f.op("i32.div_u", plane, field("channels")), field("xBatch"))));
      f.bump(x, f.op("i32.mul", group, field("xGroup")));
      f.bump(x, f.op("i32.mul", row, field("rowStep")));
      // a tile of filters, then the filter's word in each unit
      f.set(w, f.op("i32.add", field("w"), f.op("i32.mul", group, field("wGroup"))));
      f.bump(w, f.op("i32.mul", f.op("i32.shr_u", inGroup, f.i32(2)), f.op("i32.shl", field("units"), f.i32(4))));
      f.bump(w, f.op("i32.shl", f.op("i32.and", inGroup, f.i32(FILTERS - 1)), f.i32(2)));
      f.set(y, f.op("i32.add", f.op("i32.mul", plane, field("height")), row));
      f.set(y, f.op("i32.add", field("y"), f.op("i32.mul", f.op("i32.mul", y, field("width")), f.i32(size))));
      f.while(f.op("i32.lt_u", row, last), () => {
        f.run(f.call(part, x, w, y, channel, args, panel));
        f.bump(x, field("rowStep"));
        f.bump(y, f.op("i32.mul", field("width"), f.i32(size)));
        f.bump(row, 1);
      });
    };
  });
  return m.bytes();
}

export const integerDepthwise = family("integer depthwise", depthwiseModule);
