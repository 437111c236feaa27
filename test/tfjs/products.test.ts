// packedMatMul on the backends of tfjs: tf's own operations on the dequantized weight are the judges of values,
// differences those of gradients.
import * as tf from "@tensorflow/tfjs-core";
import "@tensorflow/tfjs-core/dist/register_all_gradients.js";
import "@tensorflow/tfjs-backend-cpu";
import { setWasmPaths } from "@tensorflow/tfjs-backend-wasm";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { format } from "../../formats/index.ts";
import { dequantize, quantize, tensor, type PackedTensor } from "../../src/index.ts";
import { packedMatMul, releasePacked } from "../../src/tfjs/index.ts";
import { random } from "../helpers/random.ts";

const rng = random(11);
const normal = (n: number): Float32Array => Float32Array.from({ length: n }, () => rng.normal());
const packed = (shape: number[], name: string): PackedTensor =>
  quantize(tensor(normal(shape.reduce((a, b) => a * b, 1)), shape), format(name));
/** Errors against the size of the result: 16-bit activations are off by 2e-5 of it. */
const close = (got: tf.Tensor, want: tf.Tensor, bound = 1e-4): void => {
  expect(got.shape).toEqual(want.shape);
  const [a, b] = [got, want].map((t) => t.dataSync() as Float32Array);
  const size = Math.sqrt(b.reduce((s, v) => s + v * v, 0) / b.length);
  a.forEach((v, i) => expect(Math.abs(v - b[i])).toBeLessThan(bound * 4 * size));
};
const refuse = (code: string) => expect.objectContaining({ code });

beforeAll(() => {
  setWasmPaths(fileURLToPath(new URL("../../node_modules/@tensorflow/tfjs-backend-wasm/wasm-out/", import.meta.url)));
  // a backend whose tensors are out of reach, as on a device
  class Opaque extends (tf.findBackendFactory("cpu")!() as unknown as { constructor: new () => tf.KernelBackend }).constructor {}
  tf.registerBackend("device", () => new Opaque());
  tf.copyRegisteredKernels("cpu", "device");
});
afterAll(() => tf.removeBackend("device"));

describe.each(["cpu", "wasm", "device"])("%s", (name) => {
  beforeAll(async () => {
    expect(await tf.setBackend(name)).toBe(true);
  });

  test.each(["int4_b32", "uint4_b32_zp", "nf4_b64", "mxfp4", "q4_k", "float8_e4m3fn_row"])(
    "values of %s, leading axes, no tensors left behind",
    (f) => {
      const w = packed([24, 256], f);
      const x = tf.tensor3d(normal(2 * 3 * 256), [2, 3, 256]);
      const want = tf.tidy(() =>
        tf.reshape(tf.matMul(tf.reshape(x, [6, 256]) as tf.Tensor2D, tf.tensor2d(dequantize(w), [24, 256]), false, true), [2, 3, 24]),
      );
      const before = tf.memory().numTensors;
      const got = packedMatMul(x, w);
      expect(tf.memory().numTensors).toBeLessThanOrEqual(before + 1);
      close(got, want);
      close(packedMatMul(x, w, { prepared: false }), want);
      const one = tf.tidy(() => packedMatMul(tf.slice(tf.reshape(x, [1536]), [0], [256]), w));
      expect(one.shape).toEqual([24]);
      releasePacked(w);
      close(packedMatMul(x, w), want);
      tf.disposeVariables();
    },
  );

  test("gradient to x: differences, and tf's own", () => {
    const w = packed([40, 64], "int4_b32");
    const dense = tf.tensor2d(dequantize(w), [40, 64]);
    const x = tf.tensor2d(normal(3 * 64), [3, 64]);
    const loss = (product: (x: tf.Tensor) => tf.Tensor) => (v: tf.Tensor) => tf.sum(tf.tanh(product(v)));
    const ours = loss((v) => packedMatMul(v, w, { activations: "float32" }));
    const got = tf.grad(ours)(x);
    close(got, tf.grad(loss((v) => tf.matMul(v as tf.Tensor2D, dense, false, true)))(x));
    // small steps in float32: a coarse bound
    const values = x.dataSync();
    const slope = got.dataSync();
    const at = (i: number, h: number): number =>
      ours(
        tf.tensor2d(
          values.map((v, j) => (j === i ? v + h : v)),
          [3, 64],
        ),
      ).dataSync()[0];
    for (const i of [0, 17, 100, 191])
      expect(Math.abs((at(i, 1e-2) - at(i, -1e-2)) / 2e-2 - slope[i])).toBeLessThan(0.05 * (1 + Math.abs(slope[i])));
    // through a variable, as in training
    const a = tf.variable(tf.scalar(0.5), true, `a_${name}`);
    const { grads, value } = tf.variableGrads(() => tf.mean<tf.Scalar>(tf.square(packedMatMul(tf.mul(a, x), w))), [a]);
    expect(Number.isFinite(value.dataSync()[0])).toBe(true);
    expect(grads[a.name].dataSync()[0]).not.toBe(0);
  });

  test("integer activations are near, integer tensors are cast", () => {
    const w = packed([16, 128], "int8_row");
    const x = tf.tensor2d(normal(128), [1, 128]);
    const want = packedMatMul(x, w, { activations: "float32" }).dataSync() as Float32Array;
    const got = packedMatMul(x, w, { activations: "int8" }).dataSync();
    const size = Math.sqrt(want.reduce((s, v) => s + v * v, 0) / want.length);
    got.forEach((v, i) => expect(Math.abs(v - want[i])).toBeLessThan(0.05 * size));
    expect(packedMatMul(tf.ones([2, 128], "int32"), w).dtype).toBe("float32");
  });

  test("what is refused", () => {
    const w = packed([16, 128], "int8_row");
    expect(() => packedMatMul(tf.ones([1, 64]), w)).toThrow(refuse("E_SHAPE"));
    expect(() => packedMatMul(tf.ones([1, 64]), {} as PackedTensor)).toThrow(TypeError);
    expect(() => packedMatMul(tf.ones([1, 128]), { ...w, recipe: { ...w.recipe, rotation: {} } } as PackedTensor)).toThrow(
      refuse("E_UNSUPPORTED"),
    );
  });
});
