// prepareConv2d: the WebAssembly backend gives the numbers of the reference path bit for bit, those are the
// convolution's within what activations of 8 bits cost, and what is wrong is said.
import { afterAll, describe, expect, it } from "vitest";
import { format } from "../../formats/index.ts";
import { dequantize, prepareConv2d, quantize, tensor, wasm, type Conv2dOptions, type ImageShape } from "../../src/index.ts";
import { random } from "../helpers/random.ts";

const rng = random(41);
const normal = (n: number): Float32Array => Float32Array.from({ length: n }, () => rng.normal());
const count = (dims: readonly number[]): number => dims.reduce((a, b) => a * b, 1);
const packed = (dims: number[], name: string) => quantize(tensor(normal(count(dims)), dims), format(name));
const backend = await wasm({ threads: 2 });
afterAll(() => backend.dispose());

interface Case {
  readonly filter: number[];
  readonly shape: ImageShape;
  readonly format: string;
  readonly options: Conv2dOptions;
}

const CASES: readonly [string, Case][] = [
  ["int8, 3 x 3, padded, ReLU", { filter: [9, 5, 3, 3], shape: [2, 5, 11, 13], format: "int8_row", options: { pads: 1, activation: "relu" } }],
  ["int4, strides of 2, same", { filter: [6, 4, 3, 3], shape: [1, 4, 12, 9], format: "int4_row", options: { pads: "same", strides: 2 } }],
  ["int2, dilated, pairs of pads", { filter: [4, 3, 2, 3], shape: [1, 3, 9, 17], format: "int2_row", options: { dilations: [2, 3], pads: [[1, 0], [2, 1]] } }],
  ["zero points, two groups", { filter: [6, 4, 3, 1], shape: [1, 8, 7, 18], format: "uint4_row_zp", options: { groups: 2 } }],
  ["depthwise, ReLU6", { filter: [10, 1, 3, 3], shape: [1, 5, 8, 19], format: "int8_row", options: { groups: 5, pads: 1, activation: "relu6" } }],
  ["floats on an even grid of halves", { filter: [6, 4, 3, 3], shape: [1, 4, 7, 9], format: "float4_e2m1fn_row", options: {} }],
  ["1 x 1", { filter: [20, 33, 1, 1], shape: [1, 33, 5, 9], format: "int8_row", options: {} }],
]; // prettier-ignore

/** [a, rows, columns] -> [a, columns, rows] */
function turned(data: Float32Array, a: number, rows: number, columns: number): Float32Array {
  const out = new Float32Array(data.length);
  for (let i = 0; i < a; i++)
    for (let r = 0; r < rows; r++) for (let c = 0; c < columns; c++) out[(i * columns + c) * rows + r] = data[(i * rows + r) * columns + c];
  return out;
}

/** The convolution in binary64, and the sum of the magnitudes of its terms. */
function plain(x: Float32Array, w: Float32Array, { filter, shape, options }: Case, out: ImageShape, pads: readonly number[]) {
  const two = (v: number | readonly [number, number] | undefined): readonly [number, number] => (typeof v === "number" ? [v, v] : (v ?? [1, 1]));
  const [strides, dilations] = [two(options.strides), two(options.dilations)];
  const [outputs, width, kh, kw] = filter;
  const [, channels, height, columns] = shape;
  const values: [number, number][] = [];
  for (let b = 0; b < out[0]; b++)
    for (let o = 0; o < outputs; o++)
      for (let oy = 0; oy < out[2]; oy++)
        for (let ox = 0; ox < out[3]; ox++) {
          let [sum, size] = [0, 0];
          for (let c = 0; c < width; c++)
            for (let ky = 0; ky < kh; ky++)
              for (let kx = 0; kx < kw; kx++) {
                const [iy, ix] = [oy * strides[0] - pads[0] + ky * dilations[0], ox * strides[1] - pads[1] + kx * dilations[1]];
                if (iy < 0 || ix < 0 || iy >= height || ix >= columns) continue;
                const channel = Math.floor(o / (outputs / (options.groups ?? 1))) * width + c;
                const weight = w[((o * width + c) * kh + ky) * kw + kx];
                sum += x[((b * channels + channel) * height + iy) * columns + ix] * weight;
                size += Math.abs(weight);
              }
          values.push([sum, size]);
        }
  return values;
} // prettier-ignore

describe("prepareConv2d", () => {
  it.each(CASES)("%s: as the reference bit for bit, in both layouts", (_, one) => {
    const { filter, shape, options } = one;
    const w = packed(filter, one.format);
    const x = normal(count(shape));
    const bias = normal(filter[0]);
    const reference = prepareConv2d(w, { ...options, bias });
    const kernels = prepareConv2d(w, { ...options, bias, backend });
    const result = kernels.outputShape(shape);
    expect(result).toEqual(reference.outputShape(shape));
    const want = reference.run(x, shape);
    expect(kernels.run(x, shape)).toEqual(want);
    // activations are off by half of range / 255 at most
    const range = Math.max(...x) - Math.min(...x);
    const pads = one.options.pads === "same" ? [0, 1] : typeof options.pads === "number" ? [options.pads, options.pads] : [(options.pads as number[][] | undefined)?.[0][0] ?? 0, (options.pads as number[][] | undefined)?.[1][0] ?? 0]; // prettier-ignore
    const high = options.activation === "relu6" ? 6 : Infinity;
    const low = options.activation === undefined ? -Infinity : 0;
    plain(x, dequantize(w), one, result, pads).forEach(([sum, size], i) => {
      const o = Math.floor(i / (result[2] * result[3])) % result[1];
      expect(Math.abs(want[i] - Math.min(high, Math.max(low, sum + bias[o])))).toBeLessThan((range / 510) * size * 1.01 + 1e-4);
    });
    // channels last: the same numbers in another order
    const [outputs, width, kh, kw] = filter;
    const rows = prepareConv2d(quantize(tensor(turned(dequantize(w), outputs, width, kh * kw), [outputs, kh, kw, width]), w.format), { ...options, bias, backend, layout: "nhwc" }); // prettier-ignore
    const [batch, channels, height, columns] = shape;
    const last = rows.run(turned(x, batch, channels, height * columns), [batch, height, columns, channels]);
    if (one.format !== "uint4_row_zp") {
      const back = turned(last, batch, result[2] * result[3], outputs);
      back.forEach((v, i) => expect(Math.abs(v - want[i])).toBeLessThan(1e-3));
    }
    // codes in and out
    const codes = Uint8Array.from(x, (v) => Math.min(255, Math.max(0, Math.round(v * 30) + 120)));
    const meaning = { input: { scale: 1 / 30, zeroPoint: 120 }, output: { scale: 0.05, zeroPoint: -10 } };
    const into = (): Int8Array => new Int8Array(count(result));
    expect(kernels.runCodes(codes, shape, meaning, into())).toEqual(reference.runCodes(codes, shape, meaning, into()));
    for (const layer of [reference, kernels, rows]) layer.dispose();
    expect(() => kernels.run(x, shape)).toThrow(expect.objectContaining({ code: "E_DISPOSED" }));
  });

  it("what a call keeps for the next one is of its shape, scales and types only", () => {
    for (const filter of [[6, 4, 3, 3], [8, 1, 3, 3]]) {
      const w = packed(filter, "int8_row");
      const groups = filter[1] === 1 ? 4 : 1;
      const options = { pads: 1, groups, bias: normal(filter[0]) };
      const [reference, kernels, other] = [undefined, backend, backend].map((own) => prepareConv2d(w, { ...options, backend: own }));
      for (const [height, types, scale, zeroPoint] of [
        [9, "us", 0.1, 3], [9, "us", 0.1, 3], [9, "us", 0.2, 3], [9, "us", 0.2, 90], [9, "ss", 0.2, -4], [9, "su", 0.2, -4], [7, "su", 0.2, -4], [9, "us", 0.1, 3],
      ] as const) {
        const shape: ImageShape = [1, 4, height, 20];
        const codes = Array.from({ length: count(shape) }, () => rng.integer(120));
        const x = types[0] === "u" ? Uint8Array.from(codes) : Int8Array.from(codes, (v) => v - 60);
        const into = () => (types[1] === "u" ? new Uint8Array(count(reference.outputShape(shape))) : new Int8Array(count(reference.outputShape(shape))));
        const meaning = { input: { scale, zeroPoint }, output: { scale: 2 * scale, zeroPoint: types[1] === "u" ? 100 : 7 } };
        expect(kernels.runCodes(x, shape, meaning, into())).toEqual(reference.runCodes(x, shape, meaning, into()));
        // another layer uses the same scratch space, with larger images
        other.run(normal(4 * 40 * 40), [1, 4, 40, 40]);
        const values = normal(count(shape));
        expect(kernels.run(values, shape)).toEqual(reference.run(values, shape));
      }
      for (const layer of [reference, kernels, other]) layer.dispose();
    }
  }); // prettier-ignore

  it("says what it expected", () => {
    const w = packed([4, 3, 3, 3], "int8_row");
    const code = (name: string) => expect.objectContaining({ code: name });
    expect(() => prepareConv2d(packed([4, 32, 1, 1], "int4_b16"))).toThrow(code("E_UNSUPPORTED"));
    // codes of a codebook, a minimum beside the scale
    expect(() => prepareConv2d(packed([4, 32, 1, 1], "nf4_row"))).toThrow(code("E_UNSUPPORTED"));
    expect(() => prepareConv2d(packed([4, 32], "int8_row"))).toThrow(code("E_SHAPE"));
    expect(() => prepareConv2d(w, { groups: 3 })).toThrow(code("E_SHAPE"));
    expect(() => prepareConv2d(w, { bias: new Float32Array(3) })).toThrow(code("E_SHAPE"));
    expect(() => prepareConv2d(w, { strides: 0 })).toThrow(RangeError);
    expect(() => prepareConv2d(w, { pads: -1 })).toThrow(RangeError);
    expect(() => prepareConv2d(w, { layout: "hwcn" as "nchw" })).toThrow('expected "nchw" or "nhwc", got hwcn');
    const layer = prepareConv2d(w, { backend: "wasm" });
    expect(() => layer.run(new Float32Array(16), [1, 3, 2, 2])).toThrow(code("E_SHAPE"));
    expect(() => layer.run(new Float32Array(12), [1, 3, 2, 2])).toThrow("expected an image at least as large as the window");
    expect(() => layer.run(new Float32Array(64), [1, 4, 4, 4])).toThrow("expected [batch, 3, height, width]");
    expect(() => layer.runCodes(new Uint8Array(48), [1, 3, 4, 4], { input: { scale: 0, zeroPoint: 0 }, output: { scale: 1, zeroPoint: 0 } }, new Uint8Array(16))).toThrow(code("E_VALUE")); // prettier-ignore
    layer.dispose();
  });
});
