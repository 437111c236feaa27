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

describe("prepareConv2d, word for word", () => {
  const w = packed([4, 3, 3, 3], "int8_row");
  const said = (code: string, message: string) => expect.objectContaining({ code, message });
  const shape = (text: string) => said("E_SHAPE", `prepareConv2d ${text}.`);

  it("options", () => {
    const wrong = (options: object) => () => prepareConv2d(w, options as Conv2dOptions);
    for (const name of ["strides", "dilations"])
      for (const value of [0, 0.5, -1, [1, 0], [0, 1]]) {
        const list = typeof value === "number" ? [value, value] : (value as number[]);
        expect(wrong({ [name]: value })).toThrow(
          new RangeError(`prepareConv2d ${name}: expected integers from 1, got ${list.join(", ")}.`),
        );
      }
    for (const value of [-1, 0.5]) expect(wrong({ pads: value })).toThrow(new RangeError(`prepareConv2d pads: expected integers from 0, got ${value}.`)); // prettier-ignore
    expect(wrong({ pads: [[0, 1], [2, -1]] })).toThrow(new RangeError("prepareConv2d pads: expected integers from 0, got 0, 1, 2, -1.")); // prettier-ignore
    expect(wrong({ activation: "gelu" })).toThrow(new TypeError('prepareConv2d activation: expected "none", "relu" or "relu6", got gelu.'));
    expect(wrong({ layout: "chwn" })).toThrow(new TypeError('prepareConv2d layout: expected "nchw" or "nhwc", got chwn.'));
    for (const [backend, type] of [["gpu", "string"], [null, "object"], [{}, "object"], [5, "number"]] as const) expect(wrong({ backend })).toThrow(new TypeError(`prepareConv2d backend: expected "reference", "wasm" or a WebAssembly backend, got ${type}.`)); // prettier-ignore
    for (const groups of [3, 0, -1, 0.5, 8])
      expect(wrong({ groups })).toThrow(shape(`groups: expected a divisor of 4 outputs, got ${groups}`));
    expect(wrong({ bias: new Float32Array(5) })).toThrow(shape("bias: expected a Float32Array of 4, got 5"));
    expect(wrong({ bias: [1, 2, 3, 4] })).toThrow(shape("bias: expected a Float32Array of 4, got object"));
    expect(() => prepareConv2d(packed([4, 27], "int8_row"))).toThrow(shape("w: expected a filter of four dimensions, got [4, 27]. Quantize it in that shape")); // prettier-ignore
  });

  it("filters: integers of -255 to 255 under one scale for each output, on an even grid", () => {
    const refused = (expected: string, got: string) =>
      said("E_UNSUPPORTED", `prepareConv2d w: expected ${expected}, got ${got}. Quantize it with a scale for each output: quantize(filter, format("int8_row")).`); // prettier-ignore
    for (const name of ["int4_b16", "ggml_q8_0", "nvfp4"]) expect(() => prepareConv2d(packed([4, 256, 1, 1], name)), name).toThrow(refused("integers under one scale for each output", name)); // prettier-ignore
    expect(() => prepareConv2d(packed([4, 32, 1, 1], "nf4_row"))).toThrow(refused("values on an even grid", "nf4_row"));
    // ten bits: the codes are what the values are, under a scale of one
    const filter = (...codes: number[]) => {
      const full = quantize(tensor(Float32Array.from([511, ...codes]), [1, codes.length + 1, 1, 1]), format("int10_row"));
      return { ...full, shape: [1, codes.length, 1, 1], k: codes.length, ...repacked(codes) };
    };
    const repacked = (codes: number[]) => {
      const bits = codes.flatMap((c) => Array.from({ length: 10 }, (_, b) => ((c & 1023) >> b) & 1));
      const bytes = Uint8Array.from({ length: Math.ceil(bits.length / 8) }, (_, i) => bits.slice(8 * i, 8 * i + 8).reduce((sum, b, j) => sum + (b << j), 0)); // prettier-ignore
      return { codes: bytes, rowBytes: bytes.length };
    };
    const layer = prepareConv2d(filter(255, -255, 0, 7));
    expect([...layer.run(Float32Array.of(0, 0, 0, 255), [1, 4, 1, 1])]).toEqual([7 * 255]);
    expect([...layer.run(Float32Array.of(255, 0, 0, 0), [1, 4, 1, 1])]).toEqual([255 * 255]);
    for (const code of [256, -256, 511]) expect(() => prepareConv2d(filter(1, code))).toThrow(refused("integers of -255 to 255 less their zero points", `int10_row with ${code}`)); // prettier-ignore
    const zeros = prepareConv2d(packed([2, 2, 1, 1], "int8_row"));
    expect(zeros.channels).toBe(2);
  });

  it("images, results and codes", () => {
    for (const own of ["reference", "wasm"] as const) {
      const layer = prepareConv2d(w, { backend: own, activation: "relu6" });
      expect([layer.outputs, layer.channels]).toEqual([4, 3]);
      const x = normal(2 * 3 * 5 * 6);
      const sizes: ImageShape = [2, 3, 5, 6];
      expect(layer.outputShape(sizes)).toEqual([2, 4, 3, 4]);
      const out = new Float32Array(96);
      expect(layer.run(x, sizes, out)).toBe(out);
      expect(() => layer.run(x, sizes, new Float32Array(95))).toThrow(shape("out: expected 96 elements for [2, 4, 3, 4], got 95"));
      expect(() => layer.run(x.subarray(1), sizes)).toThrow(shape("x: expected 180 elements for [2, 3, 5, 6], got 179"));
      for (const wrong of [[2, 4, 5, 6], [2, 3, 5], [2, 3, 5, 6, 1], [-2, 3, -5, 6], [2, 3, 0.5, 60]])
        expect(() => layer.run(x, wrong as unknown as ImageShape)).toThrow(shape(`x: expected [batch, 3, height, width], got [${wrong.join(", ")}]`)); // prettier-ignore
      expect(() => layer.outputShape([1, 3, 2, 9])).toThrow(shape("x: expected an image at least as large as the window, got 2 x 9"));
      expect(() => layer.outputShape([1, 4, 9, 9])).toThrow(shape("shape: expected [batch, 3, height, width], got [1, 4, 9, 9]"));
      expect(layer.run(new Float32Array(0), [0, 3, 5, 6])).toEqual(new Float32Array(0));
      expect(() => layer.run(new Uint8Array(180) as never, sizes)).toThrow(new TypeError("prepareConv2d run x: expected a Float32Array. Codes go to runCodes.")); // prettier-ignore
      const codes = (scale: number, zeroPoint: number, signed: boolean) => () =>
        layer.runCodes(signed ? new Int8Array(180) : new Uint8Array(180), sizes, { input: { scale, zeroPoint }, output: { scale: 1, zeroPoint: 0 } }, new Uint8Array(96)); // prettier-ignore
      const made = (scale: number, zeroPoint: number, signed: boolean) => () =>
        layer.runCodes(new Uint8Array(180), sizes, { input: { scale: 1, zeroPoint: 0 }, output: { scale, zeroPoint } }, signed ? new Int8Array(96) : new Uint8Array(96)); // prettier-ignore
      for (const [name, call] of [["input", codes], ["output", made]] as const) {
        for (const [signed, least, most] of [[true, -128, 127], [false, 0, 255]] as const) {
          for (const zero of [least, most]) expect(call(1, zero, signed)).not.toThrow();
          for (const zero of [least - 1, most + 1, 0.5, NaN])
            expect(call(1, zero, signed)).toThrow(said("E_VALUE", `prepareConv2d ${name}: expected a positive scale and a zero point of ${least} to ${most}, got 1 and ${zero}.`)); // prettier-ignore
          for (const scale of [0, -1, Infinity, NaN]) expect(call(scale, 0, signed)).toThrow(/expected a positive scale/);
        }
      } // prettier-ignore
      expect(() => layer.runCodes(new Uint8Array(180), sizes, { input: { scale: 1, zeroPoint: 0 }, output: { scale: 1, zeroPoint: 0 } }, new Int8Array(5))).toThrow(shape("out: expected 96 elements for [2, 4, 3, 4], got 5")); // prettier-ignore
      layer.dispose();
      layer.dispose();
      expect(() => layer.run(x, sizes)).toThrow(expect.objectContaining({ code: "E_DISPOSED" }));
      // a result without elements is one too
      expect(() => layer.run(new Float32Array(0), [0, 3, 5, 6])).toThrow(expect.objectContaining({ code: "E_DISPOSED" }));
    }
    const rows = prepareConv2d(packed([4, 3, 3, 3], "int8_row"), { layout: "nhwc" });
    expect(() => rows.outputShape([1, 9, 9, 4])).toThrow(shape("shape: expected [batch, height, width, 3], got [1, 9, 9, 4]"));
    expect(rows.outputShape([1, 9, 8, 3])).toEqual([1, 7, 6, 4]);
  });

  it("same: as many rows and columns as steps fit, the odd zero behind", () => {
    for (const [kernel, stride, dilation, height, width] of [[3, 1, 1, 5, 6], [3, 2, 1, 5, 6], [2, 1, 1, 4, 5], [3, 1, 2, 7, 5], [1, 2, 1, 5, 6], [2, 3, 1, 7, 9]]) {
      const one = quantize(tensor(new Float32Array(kernel * kernel).fill(1), [1, 1, kernel, kernel]), format("int8_row"));
      const layer = prepareConv2d(one, { pads: "same", strides: stride, dilations: dilation });
      const x = Float32Array.from({ length: height * width }, (_, i) => i % 7);
      const steps = [height, width].map((d) => Math.ceil(d / stride));
      expect(layer.outputShape([1, 1, height, width])).toEqual([1, 1, ...steps]);
      const before = [height, width].map((d, a) => Math.floor(Math.max(0, (steps[a] - 1) * stride + (kernel - 1) * dilation + 1 - d) / 2));
      const got = layer.run(x, [1, 1, height, width]);
      for (let i = 0; i < steps[0]; i++)
        for (let j = 0; j < steps[1]; j++) {
          let sum = 0;
          for (let a = 0; a < kernel; a++)
            for (let b = 0; b < kernel; b++) {
              const [y, z] = [i * stride - before[0] + a * dilation, j * stride - before[1] + b * dilation];
              if (y >= 0 && z >= 0 && y < height && z < width) sum += x[y * width + z];
            }
          expect(Math.abs(got[i * steps[1] + j] - sum)).toBeLessThan(0.2);
        }
    }
  }); // prettier-ignore
});
