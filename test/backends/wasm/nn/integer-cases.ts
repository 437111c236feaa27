// Integer convolutions and matrix products beside their definition in plain integers: cases and checks, for the
// kernels of this machine and of others.
import { expect } from "vitest";
import type { EngineMemory } from "../../../../src/backends/wasm/memory.ts";
import { runJobs, type WindowShape } from "../../../../src/backends/wasm/nn/convolution.ts";
import { integerConvolution, packFilters, packMatrix, zeroOffsets, type Finished } from "../../../../src/backends/wasm/nn/integer.ts";
import { random } from "../../../helpers/random.ts";

export const rng = random(77);
export const whole = (low: number, high: number): number => low + Math.floor(rng.next() * (high - low + 1));
export const codes = (count: number, low: number, high: number): Int32Array => Int32Array.from({ length: count }, () => whole(low, high));

/** Half to even. */
function nearest(x: number): number {
  const down = Math.floor(x);
  return x - down < 0.5 || (x - down === 0.5 && down % 2 === 0) ? down : down + 1;
}

/** What becomes of a sum. */
function finished({ to, yZero = 0, low = -Infinity, high = Infinity }: Finished, sum: number, factor: number, bias: number): number {
  if (to === "int32") return sum;
  const value = Math.fround(Math.fround(Math.fround(sum) * Math.fround(factor)) + Math.fround(bias));
  if (to === "float32") return Math.fround(Math.min(high, Math.max(low, value)));
  const [least, most] = to === "int8" ? [-128, 127] : [0, 255];
  return Math.min(Math.min(high, most), Math.max(Math.max(low, least), nearest(value) + yZero));
}

const ARRAYS = { int32: Int32Array, float32: Float32Array, int8: Int8Array, uint8: Uint8Array } as const;

/** Operands in memory, each at a multiple of 4 but not of 16, bytes at odd addresses; the last one guarded. */
function place(memory: EngineMemory, parts: readonly (Int32Array | Float32Array | Int8Array | Uint8Array)[]) {
  const region = memory.allocate(parts.reduce((sum, part) => sum + part.byteLength + 160, 64));
  let at = region.address + 4;
  const addresses = parts.map((part) => {
    const address = part.BYTES_PER_ELEMENT === 1 ? at + 1 : at;
    new Uint8Array(memory.buffer, address, part.byteLength).set(new Uint8Array(part.buffer, part.byteOffset, part.byteLength));
    at = Math.ceil((address + part.byteLength + 80) / 16) * 16 + 4;
    return address;
  });
  const last = addresses.at(-1)!;
  const guards = [last - 1, last + parts.at(-1)!.byteLength];
  const bytes = (): Uint8Array => new Uint8Array(memory.buffer);
  for (const guard of guards) bytes()[guard] = 0xa5;
  return {
    addresses,
    check: () => guards.forEach((guard) => expect(bytes()[guard]).toBe(0xa5)),
    free: () => region.free(),
  };
}

export interface ConvCase extends WindowShape {
  readonly outputs: number;
  readonly groups: number;
  readonly unsigned: boolean;
  readonly weights: readonly [number, number];
  readonly zeros: "none" | "one" | "filters";
  readonly finish: Finished;
}

export function checkConv(memory: EngineMemory, c: ConvCase): void {
  const width = c.channels / c.groups;
  const area = c.kernel[0] * c.kernel[1];
  const [low, high] = c.unsigned ? [0, 255] : [-128, 127];
  const x = codes(c.batch * c.channels * c.size[0] * c.size[1], low, high);
  const w = codes(c.outputs * width * area, ...c.weights);
  const zeros = c.zeros === "none" ? [0] : [...codes(c.zeros === "one" ? 1 : c.outputs, ...c.weights)];
  const xZero = whole(low, high);
  const filters = packFilters(memory, { codes: w, zeros, outputs: c.outputs, groups: c.groups, width, kernel: c.kernel });
  const plan = integerConvolution(memory, filters, c, c.unsigned);
  const offsets = codes(c.outputs, -5000, 5000);
  const own = offsets.slice();
  zeroOffsets(filters, c.unsigned, xZero, own);
  const factors = Float32Array.from({ length: c.outputs }, () => (0.5 + rng.next()) / 500);
  const bias = Float32Array.from({ length: c.outputs }, () => (c.finish.bias ? 4 * rng.next() - 2 : 0));
  const [height, columns] = plan.output;
  const y = new ARRAYS[c.finish.to](c.batch * c.outputs * height * columns);
  const image = c.unsigned ? Uint8Array.from(x) : Int8Array.from(x);
  const fill = c.unsigned ? Uint8Array.of(xZero) : Int8Array.of(xZero);
  const parts = [image, plan.table, new Uint8Array(plan.scratchBytes), fill, own, factors, bias, y];
  const { addresses, check, free } = place(memory, parts);
  const [xAt, table, scratch, fillAt, offsetsAt, factorsAt, biasAt, yAt] = addresses;
  const made = plan.jobs({ x: xAt, y: yAt, table, scratch, fill: fillAt, offsets: offsetsAt, factors: factorsAt, bias: biasAt }, c.finish);
  made.setZero(xZero);
  runJobs(memory, made.jobs);
  check();
  const got = new ARRAYS[c.finish.to](memory.buffer.slice(yAt, yAt + y.byteLength) as ArrayBuffer);
  const perGroup = c.outputs / c.groups;
  const wanted = y.slice();
  let i = 0;
  for (let b = 0; b < c.batch; b++)
    for (let o = 0; o < c.outputs; o++)
      for (let oy = 0; oy < height; oy++)
        for (let ox = 0; ox < columns; ox++, i++) {
          let sum = offsets[o];
          for (let ch = 0; ch < width; ch++)
            for (let ky = 0; ky < c.kernel[0]; ky++)
              for (let kx = 0; kx < c.kernel[1]; kx++) {
                const iy = oy * c.strides[0] - c.pads[0][0] + ky * c.dilations[0];
                const ix = ox * c.strides[1] - c.pads[1][0] + kx * c.dilations[1];
                if (iy < 0 || ix < 0 || iy >= c.size[0] || ix >= c.size[1]) continue;
                const channel = Math.floor(o / perGroup) * width + ch;
                const v = x[((b * c.channels + channel) * c.size[0] + iy) * c.size[1] + ix] - xZero;
                sum += v * (w[(o * width + ch) * area + ky * c.kernel[1] + kx] - zeros[zeros.length === 1 ? 0 : o]);
              }
          wanted[i] = finished(c.finish, sum, factors[o], bias[o]);
        }
  const wrong = wanted.findIndex((v, j) => v !== got[j]);
  expect({ case: c, wrong, got: got[wrong] }).toEqual({ case: c, wrong: -1, got: undefined });
  free();
  filters.dispose();
}

export const FINISHES: readonly Finished[] = [
  { to: "int32", bias: false },
  { to: "float32", bias: false },
  { to: "float32", bias: true, low: 0, high: 6 },
  { to: "uint8", bias: false, yZero: 131 },
  { to: "int8", bias: false, yZero: -9, low: -9 },
];

const base: Omit<ConvCase, "outputs" | "groups" | "channels"> = {
  batch: 1,
  size: [9, 11],
  kernel: [3, 3],
  strides: [1, 1],
  dilations: [1, 1],
  pads: [[0, 0], [0, 0]],
  unsigned: true,
  weights: [-127, 127],
  zeros: "none",
  finish: FINISHES[0],
}; // prettier-ignore

export const PRODUCTS: readonly (readonly [number, number, number])[] = [
  [1, 1, 1],
  [5, 37, 21],
  [4, 16, 16],
  [131, 8, 18],
  [7, 530, 33],
  [6, 3, 40],
];

/** Whole blocks of columns, whose sums leave as float32: one row, tiles of all heights, chunks of k, parts of rows. */
export const WHOLE_BLOCKS: readonly (readonly [number, number, number])[] = [
  [1, 5, 16],
  [7, 96, 32],
  [11, 1030, 48],
  [140, 516, 16],
];

export const NAMED: [string, ConvCase][] = [
  ["1 x 1, a plane of one row", { ...base, kernel: [1, 1], channels: 30, outputs: 13, groups: 1 }],
  ["3 x 3, padded", { ...base, pads: [[1, 1], [1, 1]], channels: 5, outputs: 9, groups: 1 }],
  ["wide rows, strides of 2", { ...base, size: [5, 77], strides: [2, 2], pads: [[1, 1], [1, 1]], channels: 3, outputs: 6, groups: 1 }],
  ["strides of 3 whose tail spans 15", { ...base, size: [1, 16], kernel: [1, 1], strides: [1, 3], channels: 4, outputs: 4, groups: 1 }],
  ["depthwise, a multiplier of 2", { ...base, pads: [[1, 2], [0, 1]], channels: 6, outputs: 12, groups: 6 }],
  ["depthwise, wide rows and strides of 2", { ...base, size: [7, 45], kernel: [3, 5], strides: [1, 2], pads: [[1, 1], [2, 2]], channels: 3, outputs: 15, groups: 3 }],
  ["depthwise, rows of 16 in place", { ...base, size: [4, 18], channels: 4, outputs: 4, groups: 4 }],
  ["depthwise, rows of two tiles, 31 taps", { ...base, size: [1, 1101], kernel: [1, 31], pads: [[0, 0], [15, 15]], channels: 2, outputs: 2, groups: 2 }],
  ["depthwise, two tiles of rows and two of columns, strides of 2", { ...base, size: [61, 1050], strides: [2, 2], pads: [[1, 1], [1, 1]], channels: 1, outputs: 1, groups: 1, weights: [-128, 127], zeros: "one" }],
  ["depthwise 5 x 5, strides of 2 down", { ...base, size: [12, 40], kernel: [5, 5], strides: [2, 1], pads: [[2, 2], [2, 2]], channels: 3, outputs: 3, groups: 3 }],
  ["depthwise, dilated, strides of 2", { ...base, size: [9, 70], kernel: [2, 4], strides: [1, 2], dilations: [2, 5], pads: [[1, 0], [9, 9]], channels: 2, outputs: 2, groups: 2 }],
  ["depthwise, padding wider than the image", { ...base, size: [2, 3], kernel: [3, 4], strides: [3, 1], pads: [[5, 4], [19, 30]], channels: 2, outputs: 4, groups: 2 }],
  ["taps beyond two chunks", { ...base, size: [3, 20], kernel: [3, 3], channels: 61, outputs: 5, groups: 1 }],
  ["1-D, dilated, from the left", { ...base, size: [1, 40], kernel: [1, 3], dilations: [1, 4], pads: [[0, 0], [8, 0]], channels: 8, outputs: 8, groups: 2 }],
  ["one output", { ...base, size: [1, 1], kernel: [1, 1], channels: 24, outputs: 7, groups: 1 }],
  ["more filters than an item takes", { ...base, size: [4, 4], kernel: [1, 1], channels: 3, outputs: 340, groups: 1 }],
  ["a block of two filters for two threads", { ...base, size: [5, 9], kernel: [1, 1], channels: 100, outputs: 212, groups: 1 }],
  ["weights of 8 bits less zero points of 8", { ...base, weights: [-128, 127], zeros: "filters", channels: 9, outputs: 10, groups: 1 }],
]; // prettier-ignore

// every remainder of tiles of filters, in chunks so long that results leave among products
for (let outputs = 1; outputs < 15; outputs++)
  NAMED.push([`${outputs} filters, 100 channels`, { ...base, size: [5, 9], kernel: [1, 1], channels: 100, outputs, groups: 1 }]);

/** A convolution of a random odd shape. */
export function checkAny(memory: EngineMemory): void {
  const groups = whole(1, 3);
  const width = rng.next() < 0.4 ? 1 : whole(1, 7);
  const kernel = [whole(1, 4), whole(1, width === 1 ? 9 : 4)] as const;
  const dilations = [whole(1, 2), whole(1, 2)] as const;
  const pads = [
    [whole(0, 3), whole(0, 3)],
    [whole(0, 3), whole(0, 3)],
  ] as const;
  const size = [0, 1].map((d) => whole(Math.max(1, dilations[d] * (kernel[d] - 1) + 1 - pads[d][0] - pads[d][1]), 24));
  checkConv(memory, {
    batch: whole(1, 2),
    groups,
    channels: groups * width,
    outputs: groups * whole(1, 9),
    size: [size[0], size[1]],
    kernel,
    dilations,
    pads,
    strides: [whole(1, 3), whole(1, 3)],
    unsigned: rng.next() < 0.5,
    weights: rng.next() < 0.5 ? [-128, 127] : [0, 255],
    zeros: (["none", "one", "filters"] as const)[whole(0, 2)],
    finish: FINISHES[whole(0, FINISHES.length - 1)],
  });
}

/** Products of rows of codes by a packed matrix, of both types of codes, with zero points and without. */
export function checkProduct(memory: EngineMemory, m: number, k: number, n: number): void {
  for (const unsigned of [true, false])
    for (const isCentred of [true, false])
      for (const finish of FINISHES) {
        const [low, high] = unsigned ? [0, 255] : [-128, 127];
        const x = codes(m * k, low, high);
        const w = Int8Array.from(codes(n * k, -128, 127));
        const zeros = isCentred ? [0] : [...codes(n, -128, 127)];
        const xZero = whole(low, high);
        const matrix = packMatrix(memory, w, n, k, zeros);
        const plan = matrix.product(m);
        const offsets = new Int32Array(plan.columns);
        offsets.set(codes(n, -5000, 5000));
        const own = offsets.slice();
        plan.zeroOffsets(xZero, own);
        const factors = Float32Array.from({ length: plan.columns }, () => (0.5 + rng.next()) / 500);
        const bias = Float32Array.from({ length: plan.columns }, () => (finish.bias ? 4 * rng.next() - 2 : 0));
        const y = new ARRAYS[finish.to](m * n);
        const rows = unsigned ? Uint8Array.from(x) : Int8Array.from(x);
        const { addresses, check, free } = place(memory, [rows, new Uint8Array(plan.scratchBytes), own, factors, bias, y]);
        const [xAt, scratch, offsetsAt, factorsAt, biasAt, yAt] = addresses;
        const made = plan.jobs({ x: xAt, y: yAt, scratch, offsets: offsetsAt, factors: factorsAt, bias: biasAt }, unsigned, finish);
        made.setZero(xZero);
        runJobs(memory, made.jobs);
        check();
        const wanted = y.slice();
        for (let r = 0; r < m; r++)
          for (let j = 0; j < n; j++) {
            let sum = offsets[j];
            for (let t = 0; t < k; t++) sum += (x[r * k + t] - xZero) * (w[j * k + t] - zeros[isCentred ? 0 : j]);
            wanted[r * n + j] = finished(finish, sum, factors[j], bias[j]);
          }
        expect(new ARRAYS[finish.to](memory.buffer.slice(yAt, yAt + y.byteLength) as ArrayBuffer)).toEqual(wanted);
        free();
        matrix.dispose();
      }
}
