// Convolution of float32 images, 1-D and 2-D, in groups: y[oc][oy, ox] = bias[oc] + sum over taps of w[oc][tap] x[...],
// as tiles of a matrix product (tiles.ts) whose panels are packed straight from the image: an unrolled image never
// exists. The image is padded beforehand (copy.ts), so that every tap of every output lies inside; a table says how far
// each tap is from the place of an output. One channel in and out at a time (depthwise) has a kernel of its own,
// window.ts.
import { ModuleBuilder, type Emit, type FunctionBuilder, type FunctionRef, type Local, type Operand } from "../engine/asm.ts";
import { family } from "../engine/family.ts";
import { writeWork } from "../engine/items.ts";
import { storeSome } from "./rows.ts";
import { COLUMNS, DEPTH, i32s, least, PANEL_BYTES, panelTiles, tileBytes, tileRows } from "./tiles.ts";

export interface ConvSpec {
  readonly relaxed: boolean;
  readonly shared: boolean;
}

export interface ConvJob {
  readonly batch: number;
  readonly groups: number;
  /** Channels out of a group, outputs of a channel, taps: channels in of a group times the kernel's size. */
  readonly channels: number;
  readonly outputs: number;
  readonly taps: number;
  /** Weights [groups, channels, taps]; addresses of float32. */
  readonly w: number;
  /** [groups, channels], or 0. */
  readonly bias: number;
  /** The padded image; bytes from a batch and from a group to the next. */
  readonly x: number;
  readonly xBatch: number;
  readonly xGroup: number;
  /** Result [batch, groups, channels, outputs]. */
  readonly y: number;
  /** Address of an int32 for each tap: bytes from an output's place to it. */
  readonly table: number;
  /** Outputs of a row; bytes from an output's place to the next one's, in a row and from row to row. */
  readonly width: number;
  readonly columnStep: number;
  readonly rowStep: number;
}

const FIELDS = [
  "groups", "mBlocks", "nBlocks", "m", "n", "k", "mSpan", "nSpan", "w", "wGroup", "bias", "x", "xBatch", "xGroup", "y", "yGroup", "table", "width",
  "columnStep", "rowStep",
] as const; // prettier-ignore
type Field = (typeof FIELDS)[number];

/** The places of 16 outputs, behind the panels and a tile. */
const PLACES = 4 * 2 * COLUMNS;

/** Items, arguments and scratch of a job. `threads`: for how many it is cut. */
export function convJob(
  job: ConvJob,
  spec: ConvSpec,
  threads: number,
): { readonly items: number; readonly args: Int32Array; readonly panelBytes: number } {
  const { batch, groups, channels: m, outputs: n, taps: k } = job;
  const unit = tileRows(spec.relaxed);
  let mSpan = Math.min(Math.ceil(m / unit) * unit, Math.floor(240 / unit) * unit);
  let nSpan = Math.min(Math.ceil(n / 16) * 16, 256);
  const blocks = (): number => Math.ceil(m / mSpan) * Math.ceil(n / nSpan) * batch * groups;
  const enough = (): boolean => threads === 1 || blocks() >= 4 * threads || mSpan * nSpan * k < 65536;
  while (nSpan > 32 && !enough()) nSpan = Math.ceil(nSpan / 32) * 16;
  while (mSpan > 8 * unit && !enough()) mSpan = Math.ceil(mSpan / 2 / unit) * unit;
  const [mBlocks, nBlocks] = [Math.ceil(m / Math.max(1, mSpan)), Math.ceil(n / Math.max(1, nSpan))];
  const args = Int32Array.of(
    ...[groups, mBlocks, nBlocks, m, n, k, mSpan, nSpan, job.w, 4 * m * k, job.bias, job.x, job.xBatch, job.xGroup],
    ...[job.y, 4 * m * n, job.table, job.width, job.columnStep, job.rowStep],
  );
  return { items: mBlocks * nBlocks * batch * groups, args, panelBytes: 2 * PANEL_BYTES + tileBytes(spec.relaxed) + PLACES };
}

/** pack(x, places, table, panel, k): 16 outputs' values of `k` taps. */
function writePack(f: FunctionBuilder): void {
  const [x, places, table, panel, k] = [0, 1, 2, 3, 4].map((i) => f.param(i));
  const four = f.locals("i32", 4);
  const [tap, end, to, at] = f.locals("i32", 4);
  const v = f.local("v128");
  f.set(end, f.op("i32.add", table, f.op("i32.shl", k, f.i32(2))));
  for (let quad = 0; quad < 4; quad++) {
    four.forEach((place, i) => f.set(place, f.op("i32.add", x, f.load("i32.load", places, 16 * quad + 4 * i))));
    f.set(to, f.op("i32.add", panel, f.i32((quad >> 1) * PANEL_BYTES + 16 * (quad & 1))));
    f.set(tap, f.get(table));
    const each = (value: (offset: Emit) => void): void =>
      f.while(f.op("i32.lt_u", tap, end), () => {
        value(f.load("i32.load", tap));
        f.store("v128.store", to, 0, v);
        f.bump(to, 32);
        f.bump(tap, 4);
      });
    // places grow from output to output: four that span 12 bytes lie side by side
    f.if(
      f.op("i32.eq", f.op("i32.sub", four[3], four[0]), f.i32(12)),
      () => each((offset) => f.set(v, f.load("v128.load", f.op("i32.add", four[0], offset)))),
      () =>
        each((offset) => {
          f.set(at, offset);
          f.set(v, f.load("v128.load32_zero", f.op("i32.add", four[0], at)));
          for (let i = 1; i < 4; i++) f.set(v, f.loadLane("v128.load32_lane", f.op("i32.add", four[i], at), 0, i, v));
        }),
    );
  }
}

/** bias(bias, y, yStep, rows, columns): up to 16 results of each row begin with its bias. */
function writeBias(f: FunctionBuilder): void {
  const [bias, y, yStep, rows, columns] = [0, 1, 2, 3, 4].map((i) => f.param(i));
  const [left, at] = f.locals("i32", 2);
  const v = f.local("v128");
  f.while(rows, () => {
    f.set(v, f.load("v128.load32_splat", bias));
    f.set(left, f.get(columns));
    f.set(at, f.get(y));
    f.while(f.op("i32.ge_u", left, f.i32(4)), () => {
      f.store("v128.store", at, 0, v);
      f.bump(at, 16);
      f.bump(left, -4);
    });
    f.if(left, () => storeSome(f, at, left, v));
    f.bump(bias, 4);
    f.bump(y, yStep);
    f.bump(rows, -1);
  });
}

/** places(to, first, last, width, columnStep, rowStep): of 16 outputs from `first` on, the last one repeated. */
function writePlaces(f: FunctionBuilder): void {
  const [to, first, last, width, columnStep, rowStep] = [0, 1, 2, 3, 4, 5].map((i) => f.param(i));
  const [at, left] = f.locals("i32", 2);
  f.set(left, f.i32(2 * COLUMNS));
  f.doWhile(() => {
    f.set(at, least(f, first, last));
    const row = f.op("i32.mul", f.op("i32.div_u", at, width), rowStep);
    f.store("i32.store", to, 0, f.op("i32.add", row, f.op("i32.mul", f.op("i32.rem_u", at, width), columnStep)));
    f.bump(to, 4);
    f.bump(first, 1);
    f.bump(left, -1);
  }, left);
}

type Parts = Readonly<Record<"pack" | "bias" | "places" | "tiles", FunctionRef>>;

/** Panels of 16 outputs from `n` on, to `end`. */
function writePanels(
  f: FunctionBuilder,
  at: Readonly<Record<"w" | "bias" | "x" | "y" | "rows" | "n" | "end", Local>>,
  panel: Local,
  relaxed: boolean,
  field: (name: Field) => Emit,
  parts: Parts,
): void {
  const [columns, done, depth, keep, w, tap, spare, places, step] = f.locals("i32", 9);
  f.set(spare, f.op("i32.add", panel, f.i32(2 * PANEL_BYTES)));
  f.set(places, f.op("i32.add", spare, f.i32(tileBytes(relaxed))));
  f.set(step, f.op("i32.shl", field("n"), f.i32(2)));
  f.while(f.op("i32.lt_u", at.n, at.end), () => {
    f.set(columns, least(f, f.op("i32.sub", at.end, at.n), f.i32(2 * COLUMNS)));
    f.run(f.call(parts.places, places, at.n, f.op("i32.sub", at.end, f.i32(1)), field("width"), field("columnStep"), field("rowStep")));
    f.set(keep, f.op("i32.ne", field("bias"), f.i32(0)));
    f.if(keep, () => f.run(f.call(parts.bias, at.bias, at.y, step, at.rows, columns)));
    f.set(done, f.i32(0));
    f.set(w, f.get(at.w));
    f.set(tap, field("table"));
    f.doWhile(
      () => {
        f.set(depth, least(f, f.op("i32.sub", field("k"), done), f.i32(DEPTH)));
        f.run(f.call(parts.pack, at.x, places, tap, panel, depth));
        const half = (b: Operand, y: Operand, count: Operand): Emit =>
          f.call(parts.tiles, w, f.op("i32.shl", field("k"), f.i32(2)), b, y, step, at.rows, count, depth, keep, spare);
        f.run(half(panel, at.y, least(f, columns, f.i32(COLUMNS))));
        f.if(f.op("i32.gt_u", columns, f.i32(COLUMNS)), () => {
          const [b, y] = [f.op("i32.add", panel, f.i32(PANEL_BYTES)), f.op("i32.add", at.y, f.i32(4 * COLUMNS))];
          f.run(half(b, y, f.op("i32.sub", columns, f.i32(COLUMNS))));
        });
        f.set(keep, f.i32(1));
        f.bump(w, 4 * DEPTH);
        f.bump(tap, 4 * DEPTH);
        f.bump(done, DEPTH);
      },
      f.op("i32.lt_u", done, field("k")),
    );
    f.bump(at.y, 8 * COLUMNS);
    f.bump(at.n, 2 * COLUMNS);
  });
}

/** A module whose `work` convolves; its arguments are `convJob`'s. */
export function convModule({ relaxed, shared }: ConvSpec): Uint8Array<ArrayBuffer> {
  const m = new ModuleBuilder({ shared });
  const parts: Parts = {
    pack: m.func(null, i32s(5), [], writePack),
    bias: m.func(null, i32s(5), [], writeBias),
    places: m.func(null, i32s(6), [], writePlaces),
    tiles: panelTiles(m, { a: "rows", relaxed }),
  };
  writeWork(m, (f, args, panel) => {
    const field = (name: Field): Emit => f.load("i32.load", args, 4 * FIELDS.indexOf(name));
    const [left, both, row, group, w, bias, x, y, rows, n, end] = f.locals("i32", 11);
    return (item) => {
      f.set(n, f.op("i32.mul", f.op("i32.rem_u", item, field("nBlocks")), field("nSpan")));
      f.set(end, least(f, f.op("i32.add", n, field("nSpan")), field("n")));
      f.set(left, f.op("i32.div_u", item, field("nBlocks")));
      f.set(row, f.op("i32.mul", f.op("i32.rem_u", left, field("mBlocks")), field("mSpan")));
      f.set(rows, least(f, field("mSpan"), f.op("i32.sub", field("m"), row)));
      f.set(both, f.op("i32.div_u", left, field("mBlocks")));
      f.set(group, f.op("i32.rem_u", both, field("groups")));
      f.set(x, f.op("i32.add", field("x"), f.op("i32.mul", f.op("i32.div_u", both, field("groups")), field("xBatch"))));
      f.bump(x, f.op("i32.mul", group, field("xGroup")));
      f.set(w, f.op("i32.add", field("w"), f.op("i32.mul", group, field("wGroup"))));
      f.bump(w, f.op("i32.mul", row, f.op("i32.shl", field("k"), f.i32(2))));
      f.set(bias, f.op("i32.add", field("bias"), f.op("i32.shl", f.op("i32.add", f.op("i32.mul", group, field("m")), row), f.i32(2))));
      f.set(y, f.op("i32.add", field("y"), f.op("i32.mul", both, field("yGroup"))));
      f.bump(y, f.op("i32.shl", f.op("i32.add", f.op("i32.mul", row, field("n")), n), f.i32(2)));
      writePanels(f, { w, bias, x, y, rows, n, end }, panel, relaxed, field, parts);
    };
  });
  return m.bytes();
}

export const conv = family("conv", convModule);
