// packedConv2d on the backends of tfjs: the reference path of prepareConv2d is the judge of our kernels, a plain
// convolution of the decoded filter that of others, differences those of gradients.
import * as tf from "@tensorflow/tfjs-core";
import "@tensorflow/tfjs-core/dist/register_all_gradients.js";
import "@tensorflow/tfjs-backend-cpu";
import { setWasmPaths } from "@tensorflow/tfjs-backend-wasm";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { format } from "../../formats/index.ts";
import { dequantize, prepareConv2d, quantize, tensor, type PackedTensor } from "../../src/index.ts";
import { packedConv2d, releasePacked } from "../../src/tfjs/index.ts";
import { random } from "../helpers/random.ts";

const rng = random(12);
const normal = (n: number): Float32Array => Float32Array.from({ length: n }, () => rng.normal());
const packed = (shape: number[], name: string): PackedTensor =>
  quantize(tensor(normal(shape.reduce((a, b) => a * b, 1)), shape), format(name));
const refuse = (code: string) => expect.objectContaining({ code });

/** [batch, height, width, in] by [out, height, width, in], strides 1, in binary64. */
function plain(x: Float32Array, [n, h, wide, c]: number[], w: Float32Array, [out, kh, kw]: number[], pad: number): number[] {
  const y: number[] = [];
  for (let b = 0; b < n; b++)
    for (let oy = 0; oy <= h + 2 * pad - kh; oy++)
      for (let ox = 0; ox <= wide + 2 * pad - kw; ox++)
        for (let o = 0; o < out; o++) {
          let sum = 0;
          for (let ky = 0; ky < kh; ky++)
            for (let kx = 0; kx < kw; kx++) {
              const [iy, ix] = [oy + ky - pad, ox + kx - pad];
              if (iy < 0 || ix < 0 || iy >= h || ix >= wide) continue;
              for (let i = 0; i < c; i++) sum += x[((b * h + iy) * wide + ix) * c + i] * w[((o * kh + ky) * kw + kx) * c + i];
            }
          y.push(sum);
        }
  return y;
}

beforeAll(() => {
  setWasmPaths(fileURLToPath(new URL("../../node_modules/@tensorflow/tfjs-backend-wasm/wasm-out/", import.meta.url)));
  // a backend whose tensors are out of reach, as on a device
  class Opaque extends (tf.findBackendFactory("cpu")!() as unknown as { constructor: new () => tf.KernelBackend }).constructor {}
  tf.registerBackend("opaque", () => new Opaque());
  tf.copyRegisteredKernels("cpu", "opaque");
});
afterAll(() => tf.removeBackend("opaque"));

describe.each(["cpu", "wasm", "opaque"])("%s", (name) => {
  beforeAll(async () => {
    expect(await tf.setBackend(name)).toBe(true);
  });

  test("values, no tensors left behind", () => {
    const w = packed([6, 3, 3, 4], "int8_row");
    const data = normal(2 * 7 * 9 * 4);
    const x = tf.tensor4d(data, [2, 7, 9, 4]);
    const before = tf.memory().numTensors;
    const y = packedConv2d(x, w, { pad: 1 });
    expect(tf.memory().numTensors).toBe(before + 1);
    expect(y.shape).toEqual([2, 7, 9, 6]);
    const got = y.dataSync();
    const exact = plain(data, x.shape, dequantize(w), w.shape as number[], 1);
    if (name === "opaque") exact.forEach((v, i) => expect(Math.abs(got[i] - v)).toBeLessThan(1e-4));
    else {
      const judge = prepareConv2d(w, { pads: 1, layout: "nhwc" });
      expect(got).toEqual(judge.run(data, [2, 7, 9, 4]));
      const size = Math.sqrt(exact.reduce((s, v) => s + v * v, 0) / exact.length);
      exact.forEach((v, i) => expect(Math.abs(got[i] - v)).toBeLessThan(0.06 * size));
    }
    const floats = packedConv2d(x, w, { pad: 1, activations: "float32" }).dataSync();
    exact.forEach((v, i) => expect(Math.abs(floats[i] - v)).toBeLessThan(1e-4));
    releasePacked(w);
    expect(packedConv2d(x, w, { pad: 1 }).dataSync()).toEqual(got);
    expect(packedConv2d(x, w, { pad: "same", strides: 2 }).shape).toEqual([2, 4, 5, 6]);
    releasePacked(w);
  });

  test("the gradient to x is that of the decoded filter", () => {
    const w = packed([3, 2, 2, 2], "int8_row");
    const data = normal(4 * 5 * 2);
    const dy = normal(3 * 4 * 3);
    const gradient = tf.grad((x: tf.Tensor) => tf.sum(tf.mul(packedConv2d(x as tf.Tensor4D, w), tf.tensor4d(dy, [1, 3, 4, 3]))));
    const got = gradient(tf.tensor4d(data, [1, 4, 5, 2])).dataSync();
    const values = dequantize(w);
    const loss = (x: Float32Array): number => plain(x, [1, 4, 5, 2], values, [3, 2, 2], 0).reduce((sum, v, i) => sum + v * dy[i], 0);
    data.forEach((_, i) => {
      const [up, down] = [1, -1].map((step) => loss(data.with(i, data[i] + step)));
      expect(Math.abs(got[i] - (up - down) / 2)).toBeLessThan(1e-4);
    });
  });

  test.each([[1, 1], ["same", 2], ["valid", 2], [1, 2]] as const)("the gradient is tfjs's own, pad %s, strides of %i", (pad, strides) => {
    const w = packed([6, 3, 3, 4], "int8_row");
    const x = tf.tensor4d(normal(2 * 7 * 9 * 4), [2, 7, 9, 4]);
    const filter = tf.transpose(tf.tensor4d(dequantize(w), [6, 3, 3, 4]), [1, 2, 3, 0]);
    const of = (conv: (t: tf.Tensor4D) => tf.Tensor): ArrayLike<number> =>
      tf.grad((t: tf.Tensor) => tf.sum(tf.square(conv(t as tf.Tensor4D))))(x).dataSync();
    const want = of((t) => tf.conv2d(t, filter as tf.Tensor4D, strides, pad));
    const got = of((t) => packedConv2d(t, w, { pad, strides, activations: "float32" }));
    for (let i = 0; i < want.length; i++) expect(Math.abs(got[i] - want[i])).toBeLessThan(1e-2);
  }); // prettier-ignore

  test("says what it expected", () => {
    const x = tf.zeros<tf.Rank.R4>([1, 4, 4, 3]);
    expect(() => packedConv2d(x, packed([2, 12], "int8_row"))).toThrow(refuse("E_SHAPE"));
    expect(() => packedConv2d(x, packed([2, 2, 2, 4], "int8_row"))).toThrow(refuse("E_SHAPE"));
    if (name !== "opaque") expect(() => packedConv2d(x, packed([2, 4, 4, 3], "int4_b16"))).toThrow(refuse("E_UNSUPPORTED"));
    const dilated = tf.grad((t: tf.Tensor) => packedConv2d(t as tf.Tensor4D, packed([2, 2, 2, 3], "int8_row"), { dilations: 2 }));
    expect(() => dilated(x).dataSync()).toThrow(refuse("E_UNSUPPORTED"));
  });
});
