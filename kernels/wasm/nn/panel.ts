// Tiles of sliding windows: a rectangle of outputs of one plane, and the part of the image under it, copied into a
// panel that lies in the first-level cache, with the padding about it. So no padded image is written or read. Values
// of a panel are float32, or i16 of codes less their zero point, whose padding is 0, or bytes as they are or less 128.
import type { Emit, FunctionBuilder, FunctionRef, Local } from "../engine/asm.ts";
import { least } from "./tiles.ts";

export type Pair = readonly [number, number];

export interface PanelShape {
  /** Of the image, [height, width]; padding before it. */
  readonly size: Pair;
  readonly before: Pair;
  readonly kernel: Pair;
  readonly strides: Pair;
  readonly dilations: Pair;
  readonly output: Pair;
}

/** What the image has; its bytes there and in a panel, values of a vector. */
export type PanelElement = "float32" | "uint8" | "int8" | "bytes" | "flipped bytes";
const BYTES = { float32: [4, 4, 4], uint8: [1, 2, 8], int8: [1, 2, 8], bytes: [1, 1, 16], "flipped bytes": [1, 1, 16] } as const;

/** Most outputs of a row of a tile, and bytes of a panel where the rows of a kernel do not need more. */
const COLUMNS = 512;
const PANEL_BYTES = 12288;

export const PANEL_FIELDS = [
  "filters", "multiplier", "rowBlocks", "columnBlocks", "rows", "columns", "outHeight", "outWidth", "height", "width", "top", "left", "rowStep", "step",
  "kernelSpan", "need", "rowBytes", "x", "y",
] as const; // prettier-ignore
export type PanelField = (typeof PANEL_FIELDS)[number];

/** Planes [batch, channels] of the image at x, and [batch, channels, multiplier] of the result at y. */
export interface PanelPlanes {
  readonly batch: number;
  readonly channels: number;
  readonly multiplier: number;
  readonly x: number;
  readonly y: number;
}

export interface Panel {
  /** Of the panel: from a row to the next. */
  readonly rowBytes: number;
  readonly bytes: number;
  args(planes: PanelPlanes): { readonly items: number; readonly args: readonly number[] };
}

/** `reach`: columns that are read for so many outputs of a row, where they are more than the image and its padding. */
export function panelOf(shape: PanelShape, element: PanelElement, reach: (columns: number) => number = () => 0): Panel {
  const { size, before, kernel, strides, dilations, output } = shape;
  const columnBlocks = Math.ceil(output[1] / COLUMNS);
  const columns = Math.ceil(output[1] / columnBlocks);
  const need = strides[1] * (columns - 1) + (kernel[1] - 1) * dilations[1] + 1;
  const rowBytes = 16 * Math.ceil((Math.max(need, reach(columns)) * BYTES[element][1]) / 16);
  // rows of the image under the kernel are copied for each tile: tiles are as high as that
  const kernelSpan = (kernel[0] - 1) * dilations[0] + 1;
  const fits = Math.floor((PANEL_BYTES / rowBytes - kernelSpan) / strides[0]) + 1;
  const rows = Math.min(output[0], Math.max(fits, Math.ceil(kernelSpan / strides[0])));
  const rowBlocks = Math.ceil(output[0] / rows);
  return {
    rowBytes,
    // zeros behind the last row may go beyond it
    bytes: ((rows - 1) * strides[0] + kernelSpan) * rowBytes + 16,
    args: ({ batch, channels, multiplier, x, y }) => ({
      items: batch * channels * multiplier * rowBlocks * columnBlocks,
      args: [
        ...[channels * multiplier, multiplier, rowBlocks, columnBlocks, rows, columns, ...output, ...size, ...before, ...strides],
        ...[kernelSpan, need, rowBytes, x, y],
      ],
    }),
  };
}

/**
 * fill(to, x, lead, count, need, value): a row of a panel: `lead` columns of padding, `count` of the image, padding up
 * to `need`. value: bits of the padding of float32, zero point of codes, the padding of bytes.
 */
export function writeFill(f: FunctionBuilder, element: PanelElement): void {
  const [to, x, lead, count, need, value] = [0, 1, 2, 3, 4, 5].map((i) => f.param(i));
  const [at, here, last] = f.locals("i32", 3);
  const [less, padding] = f.locals("v128", 2);
  const isFloat = element === "float32";
  const isByte = element === "bytes" || element === "flipped bytes";
  const flipped = (v: Emit, name: "i32.xor" | "v128.xor"): Emit =>
    element !== "flipped bytes" ? v : f.op(name, v, name === "v128.xor" ? f.constant8(128) : f.i32(128));
  const sign = element === "uint8" ? "u" : "s";
  const [from, into, lanes] = BYTES[element];
  const scaled = (i: Local, bytes: 1 | 2 | 4): Emit => (bytes === 1 ? f.get(i) : f.op("i32.shl", i, f.i32(bytes >> 1)));
  const target = (i: Local): Emit => f.op("i32.add", to, scaled(i, into));
  const source = (i: Local): Emit => f.op("i32.add", x, scaled(i, from));
  const pad = (until: Local): void =>
    f.while(f.op("i32.lt_s", at, until), () => {
      f.store("v128.store", target(at), 0, padding);
      f.bump(at, lanes);
    });
  if (isFloat) f.set(padding, f.op("i32x4.splat", value));
  else if (isByte) f.set(padding, f.op("i8x16.splat", value));
  else f.set(less, f.op("i16x8.splat", value));
  pad(lead);
  f.set(to, target(lead));
  f.set(need, f.op("i32.sub", need, lead));
  f.set(at, f.i32(0));
  f.if(
    f.op("i32.ge_s", count, f.i32(lanes)),
    () => {
      f.set(last, f.op("i32.sub", count, f.i32(lanes)));
      f.doWhile(
        () => {
          f.set(here, least(f, at, last));
          const whole = (): Emit => f.load("v128.load", source(here));
          const words = (): Emit => f.op("i16x8.sub", f.load(`v128.load8x8_${sign}`, source(here)), less);
          f.store("v128.store", target(here), 0, isFloat ? whole() : isByte ? flipped(whole(), "v128.xor") : words());
          f.bump(at, lanes);
        },
        f.op("i32.lt_s", at, count),
      );
    },
    () =>
      f.while(f.op("i32.lt_s", at, count), () => {
        if (isFloat) f.store("i32.store", target(at), 0, f.load("i32.load", source(at)));
        else if (isByte) f.store("i32.store8", target(at), 0, flipped(f.load("i32.load8_u", source(at)), "i32.xor"));
        else f.store("i32.store16", target(at), 0, f.op("i32.sub", f.load(`i32.load8_${sign}`, source(at)), value));
        f.bump(at, 1);
      }),
  );
  f.set(at, f.get(count));
  pad(need);
}

export interface PanelTile {
  /** Of the result, in all batches; the filter and its channel of the image. */
  readonly plane: Local;
  readonly filter: Local;
  readonly channel: Local;
  /** First output, and how many. */
  readonly oy: Local;
  readonly ox: Local;
  readonly rows: Local;
  readonly columns: Local;
}

/** Writers of a tile: where it is, and the copy of what lies under it. `fill`: as `writeFill` has it. */
export function panelTile(
  f: FunctionBuilder,
  field: (name: PanelField) => Emit,
  element: PanelElement,
  fill: FunctionRef,
): { readonly tile: PanelTile; place(item: Local): void; copy(panel: Local, value: Emit): void; outputAt(size: 1 | 4): Emit } {
  const [plane, filter, channel, oy, ox, rows, columns, from, count, lead, iy, end, to, x] = f.locals("i32", 14);
  const zero = f.i32(0);
  const notNegative = (a: Local): void => f.set(a, f.op("select", a, zero, f.op("i32.gt_s", a, zero)));
  const atMost = (a: Local, b: Emit): void => f.set(a, f.op("select", a, b, f.op("i32.lt_s", a, b)));
  const scaled = (value: Emit, bytes: 1 | 4): Emit => (bytes === 1 ? value : f.op("i32.shl", value, f.i32(2)));
  const bytes = BYTES[element][0];
  const value = f.local("i32");
  return {
    tile: { plane, filter, channel, oy, ox, rows, columns },
    place(item) {
      f.set(plane, f.op("i32.div_u", item, field("columnBlocks")));
      f.set(ox, f.op("i32.mul", f.op("i32.rem_u", item, field("columnBlocks")), field("columns")));
      f.set(oy, f.op("i32.mul", f.op("i32.rem_u", plane, field("rowBlocks")), field("rows")));
      f.set(plane, f.op("i32.div_u", plane, field("rowBlocks")));
      f.set(rows, f.op("i32.sub", field("outHeight"), oy));
      atMost(rows, field("rows"));
      f.set(columns, f.op("i32.sub", field("outWidth"), ox));
      atMost(columns, field("columns"));
      f.set(filter, f.op("i32.rem_u", plane, field("filters")));
      f.set(channel, f.op("i32.div_u", filter, field("multiplier")));
    },
    copy(panel, padding) {
      f.set(value, padding);
      // columns of the image under the tile: from `from` + `lead` on, `count` of them
      f.set(from, f.op("i32.sub", f.op("i32.mul", ox, field("step")), field("left")));
      f.set(lead, f.op("i32.sub", zero, from));
      notNegative(lead);
      atMost(lead, field("need"));
      f.bump(from, lead);
      f.set(count, f.op("i32.sub", field("width"), from));
      atMost(count, f.op("i32.sub", field("need"), lead));
      notNegative(count);
      f.set(x, f.op("i32.div_u", plane, field("filters")));
      f.set(x, f.op("i32.mul", x, f.op("i32.div_u", field("filters"), field("multiplier"))));
      f.set(x, f.op("i32.mul", f.op("i32.add", x, channel), f.op("i32.mul", field("height"), field("width"))));
      f.set(x, f.op("i32.add", field("x"), scaled(f.op("i32.add", x, from), bytes)));
      f.set(iy, f.op("i32.sub", f.op("i32.mul", oy, field("rowStep")), field("top")));
      f.set(end, f.op("i32.mul", f.op("i32.sub", rows, f.i32(1)), field("rowStep")));
      f.set(end, f.op("i32.add", f.op("i32.add", iy, end), field("kernelSpan")));
      f.set(to, f.get(panel));
      f.while(f.op("i32.lt_s", iy, end), () => {
        const row = f.op("i32.add", x, scaled(f.op("i32.mul", iy, field("width")), bytes));
        f.if(
          f.op("i32.lt_u", iy, field("height")),
          () => f.run(f.call(fill, to, row, lead, count, field("need"), value)),
          () => f.run(f.call(fill, to, x, field("need"), zero, field("need"), value)),
        );
        f.bump(to, field("rowBytes"));
        f.bump(iy, 1);
      });
    },
    outputAt(size) {
      const at = f.op("i32.mul", f.op("i32.add", f.op("i32.mul", plane, field("outHeight")), oy), field("outWidth"));
      return f.op("i32.add", field("y"), scaled(f.op("i32.add", at, ox), size));
    },
  };
}
