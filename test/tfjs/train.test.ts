// Training in low precision: quantize and dequantize are the judges of values, tf's own operations on quantized operands
// those of products, sums over seeded draws those of expectations.
import * as tf from "@tensorflow/tfjs-core";
import "@tensorflow/tfjs-backend-cpu";
import * as tfl from "@tensorflow/tfjs-layers";
import { beforeAll, describe, expect, test } from "vitest";
import { allFormats, format } from "../../formats/index.ts";
import { dequantize, dotInt16, quantize, tensor } from "../../src/index.ts";
import { hadamard, seededRandom } from "../../src/quantize/index.ts";
import { dfp16MatMul, fakeQuantize, movingRange, quantizeAware, quartetMatMul } from "../../src/tfjs/index.ts";
import { random } from "../helpers/random.ts";

const rng = random(23);
const normal = (n: number): Float32Array => Float32Array.from({ length: n }, () => rng.normal());
const matrix = (rows: number, k: number): tf.Tensor2D => tf.tensor2d(normal(rows * k), [rows, k]);
const values = (t: tf.Tensor): Float32Array => t.dataSync() as Float32Array;
const refuse = (code: string) => expect.objectContaining({ code });
const near = (got: tf.Tensor, want: tf.Tensor, bound: number): void => {
  expect(got.shape).toEqual(want.shape);
  const [a, b] = [values(got), values(want)];
  a.forEach((v, i) => expect(Math.abs(v - b[i])).toBeLessThanOrEqual(bound));
};

beforeAll(async () => {
  expect(await tf.setBackend("cpu")).toBe(true);
});

describe("fakeQuantize", () => {
  test("every format: the values of quantize, a gradient straight through", () => {
    for (const f of allFormats) {
      const data = normal(256);
      const x = tf.tensor2d(data, [1, 256]);
      const { value, grad } = tf.valueAndGrad((v) => tf.sum(tf.mul(fakeQuantize(v, f), 3)))(x);
      expect(values(fakeQuantize(x, f)), f.name).toEqual(dequantize(quantize(tensor(data, [1, 256]), f)));
      expect(Number.isFinite(values(value)[0]), f.name).toBe(true);
      expect(new Set(values(grad)), f.name).toEqual(new Set([3]));
    }
  });

  test.each([
    [[8, 6], 1],
    [[3, 3, 4, 5], 3],
    [[3, 3, 4, 5], 2],
    [[3, 3, 4, 5], 0],
    [[4, 5], -1],
  ])("output channels of %j on axis %i", (shape, outputs) => {
    const x = tf.tensor(normal(tf.util.sizeFromShape(shape)), shape);
    const axis = (outputs + shape.length) % shape.length;
    const order = [axis, ...shape.map((_, i) => i).filter((i) => i !== axis)];
    const back = order.map((_, i) => order.indexOf(i));
    const turned = tf.transpose(x, order);
    const rows = dequantize(quantize(tensor(values(turned), [shape[axis], x.size / shape[axis]]), format("int4_row")));
    const want = tf.transpose(tf.tensor(rows, turned.shape), back);
    expect(values(fakeQuantize(x, format("int4_row"), { outputs }))).toEqual(values(want));
  });

  test("the clipped gradient is zero beyond what a block holds", () => {
    const x = tf.tensor2d([1000, 2, -448, -470, 460, 0], [1, 6]);
    const grad = tf.grad((v) => tf.sum(fakeQuantize(v, format("float8_e4m3fn"), { gradient: "clipped" })));
    expect([...values(grad(x))]).toEqual([0, 1, 1, 0, 1, 1]);
    // mxfp4: amax 7.5 has the scale 1, the largest number 6 and a last step of 2
    const block = tf.tensor2d([7.5, -7.5, 6.5, 1, ...new Array<number>(28).fill(0.5)], [1, 32]);
    const mx = values(tf.grad((v) => tf.sum(fakeQuantize(v, format("mxfp4"), { gradient: "clipped" })))(block));
    expect([...mx.subarray(0, 4)]).toEqual([0, 0, 1, 1]);
    // zero points: all of the block is inside
    const zp = tf.grad((v) => tf.sum(fakeQuantize(v, format("uint4_b32_zp"), { gradient: "clipped" })))(tf.add(block, 3));
    expect(new Set(values(zp))).toEqual(new Set([1]));
  });

  test("a range given: the grid of that range, clipped outside, with the gradient of the clip", () => {
    const f = format("uint8_tensor_zp");
    const x = tf.tensor1d([-3, -1, -0.5, 0, 0.7, 2, 9]);
    const range = [-1, 2] as const;
    const got = values(fakeQuantize(x, f, { range }));
    // the range widened to itself gives the same grid by quantize
    const inside = dequantize(quantize(tensor(Float32Array.of(-1, -0.5, 0, 0.7, 2), [5]), f));
    [got[1], got[2], got[3], got[4], got[5]].forEach((v, i) => expect(v).toBeCloseTo(inside[i], 6));
    expect([got[0], got[6]]).toEqual([got[1], got[5]]);
    const grad = values(tf.grad((v) => tf.sum(fakeQuantize(v, f, { range })))(tf.tensor1d([-3, -0.9, 0, 1.9, 9])));
    expect([...grad]).toEqual([0, 1, 1, 1, 0]);
    const symmetric = values(fakeQuantize(tf.tensor1d([-9, 0.3, 9]), format("int8_tensor"), { range: [-1, 1] }));
    expect(symmetric[0]).toBeCloseTo(-1, 6);
    expect(symmetric[2]).toBeCloseTo(1, 6);
    for (const name of ["int8_row", "mxfp4", "float8_e4m3fn", "q4_k"])
      expect(() => fakeQuantize(x, format(name), { range }), name).toThrow(refuse("E_UNSUPPORTED"));
    expect(() => fakeQuantize(x, f, { range: [2, 1] })).toThrow(RangeError);
    expect(() => fakeQuantize(x, f, { range: [NaN, 1] })).toThrow(RangeError);
  });

  test("a moving range", () => {
    const seen = movingRange({ decay: 0.5 });
    expect(seen.current).toBeUndefined();
    expect(seen.observe(tf.tensor1d([-2, 4]))).toEqual([-2, 4]);
    expect(seen.observe(tf.tensor1d([0, 8]))).toEqual([-1, 6]);
    expect(seen.current).toEqual([-1, 6]);
    expect(() => movingRange({ decay: 1 })).toThrow(RangeError);
  });

  test("stochastic rounding is unbiased, within 4 sigma", () => {
    // not with zero points, which cut the extremes by up to half a step
    const draws = 400;
    const x = normal(64);
    let between = 0;
    for (const [name, scaleRule] of [
      ["mxfp4_fourthirds"],
      ["mxfp4", "rceil"],
      ["int4_b32"],
      ["float8_e5m2"],
      ["int8_row"],
      ["nf4_b64"],
    ] as const) {
      const random = seededRandom(5);
      const sum = new Float64Array(64);
      const t = tf.tensor2d(x, [1, 64]);
      const rounded = (rounding: "floor" | "ceil" | "stochastic") =>
        values(tf.tidy(() => fakeQuantize(t, format(name), { rounding, random, ...(scaleRule ? { scaleRule } : {}) })));
      for (let i = 0; i < draws; i++) rounded("stochastic").forEach((v, j) => (sum[j] += v - x[j]));
      const [below, above] = [rounded("floor"), rounded("ceil")];
      for (let j = 0; j < 64; j++) {
        // a draw is one of two neighbours: the variance is known, and two rare draws are no evidence
        const sigma = Math.sqrt(Math.max(0, (x[j] - below[j]) * (above[j] - x[j])) / draws);
        expect(Math.abs(sum[j] / draws), `${name} ${j}`).toBeLessThanOrEqual(4 * sigma + (2 * (above[j] - below[j])) / draws + 1e-6);
        if (x[j] - below[j] > 0.1 * (above[j] - below[j]) && above[j] - x[j] > 0.1 * (above[j] - below[j])) between++;
      }
    }
    expect(between).toBeGreaterThan(150);
  });

  test("what is refused", () => {
    const x = tf.ones([2, 32]);
    expect(() => fakeQuantize([1] as unknown as tf.Tensor, format("mxfp4"))).toThrow(TypeError);
    expect(() => fakeQuantize(x, "mxfp4" as never)).toThrow(TypeError);
    expect(() => fakeQuantize(x, format("int8_row"), { outputs: 2 })).toThrow(RangeError);
    expect(() => fakeQuantize(x, format("int8_row"), { gradient: "none" as never })).toThrow(TypeError);
    expect(() => fakeQuantize(x, format("int8_row"), { axis: 1 } as never)).toThrow(TypeError);
    expect(() => fakeQuantize(tf.tensor1d([NaN]), format("int8_row"))).toThrow(refuse("E_VALUE"));
  });
});

describe("quartetMatMul", () => {
  /** H of order 32 on the blocks of k. */
  const rotate = (t: tf.Tensor2D): tf.Tensor2D => {
    const h = tf.tensor2d(
      Float32Array.from(hadamard(32), (v) => v / Math.sqrt(32)),
      [32, 32],
    );
    return tf.reshape(tf.matMul(tf.reshape(t, [-1, 32]) as tf.Tensor2D, h), t.shape);
  };
  const quest = (t: tf.Tensor2D): tf.Tensor2D => fakeQuantize(rotate(t), format("mxfp4"), { scaleRule: "quest" }) as tf.Tensor2D;

  test("forward: rotated operands in MXFP4 with QuEST's clip", () => {
    const [x, w] = [matrix(6, 64), matrix(9, 64)];
    near(quartetMatMul(x, w), tf.matMul(quest(x), quest(w), false, true), 1e-4);
    // near the float product, and leading axes
    const [got, exact] = [values(quartetMatMul(x, w)), values(tf.matMul(x, w, false, true))];
    const error = Math.sqrt(got.reduce((s, v, i) => s + (v - exact[i]) ** 2, 0) / exact.reduce((s, v) => s + v * v, 0));
    expect(error).toBeGreaterThan(0.01);
    expect(error).toBeLessThan(0.35);
    expect(quartetMatMul(tf.reshape(x, [2, 3, 64]), w).shape).toEqual([2, 3, 9]);
  });

  test("k, m and n that no 32 divides", () => {
    const [x, w] = [matrix(3, 41), matrix(5, 41)];
    const padded = (t: tf.Tensor2D) => tf.pad(t, [[0, 0], [0, 23]]); // prettier-ignore
    near(quartetMatMul(x, w), tf.matMul(quest(padded(x)), quest(padded(w)), false, true), 1e-4);
    const [dx, dw] = tf.grads((a, b) => tf.sum(tf.square(quartetMatMul(a, b))))([x, w]);
    expect([dx.shape, dw.shape]).toEqual([
      [3, 41],
      [5, 41],
    ]);
  });

  test("the gradients' expectation is that of the quantized forward, within 4 sigma", () => {
    const [x, w, dy] = [matrix(5, 32), matrix(7, 32), matrix(5, 7)];
    const uniform = seededRandom(9);
    const draws = 250;
    const got = tf.grads((a, b) => tf.sum(tf.mul(quartetMatMul(a, b, { random: uniform }), dy)));
    const sums = [x, w].map((t) => [new Float64Array(t.size), new Float64Array(t.size)]);
    for (let i = 0; i < draws; i++)
      tf.tidy(() =>
        got([x, w]).forEach((g, which) =>
          values(g).forEach((v, j) => {
            sums[which][0][j] += v;
            sums[which][1][j] += v * v;
          }),
        ),
      );
    // QuEST's mask on the rotated gradient, then back
    const mask = (t: tf.Tensor2D): tf.Tensor =>
      tf.grad((v) => tf.sum(fakeQuantize(v, format("mxfp4"), { scaleRule: "quest", gradient: "clipped" })))(rotate(t));
    const wants = [
      rotate(tf.mul(tf.matMul(dy, quest(w)), mask(x)) as tf.Tensor2D),
      rotate(tf.mul(tf.matMul(dy, quest(x), true), mask(w)) as tf.Tensor2D),
    ];
    wants.forEach((want, which) =>
      values(want).forEach((v, j) => {
        const mean = sums[which][0][j] / draws;
        const sigma = Math.sqrt((sums[which][1][j] / draws - mean ** 2) / draws);
        expect(Math.abs(mean - v)).toBeLessThanOrEqual(4 * sigma + 1e-5);
      }),
    );
  });

  test("what is refused", () => {
    expect(() => quartetMatMul(tf.ones([2, 3]), tf.ones([4, 5]))).toThrow(refuse("E_SHAPE"));
    expect(() => quartetMatMul(tf.ones([2, 3]), tf.ones([3]))).toThrow(refuse("E_SHAPE"));
    expect(() => quartetMatMul(tf.ones([2, 3]), {} as tf.Tensor)).toThrow(TypeError);
    expect(() => quartetMatMul(tf.ones([2, 3]), tf.ones([4, 3]), { random: 1 as never })).toThrow(TypeError);
  });
});

describe("dfp16MatMul", () => {
  /** int16 under one power of two, written apart: floor(log2 amax) - 14. */
  const integers = (data: Float32Array): { codes: Int16Array; unit: number } => {
    const unit = 2 ** (Math.floor(Math.log2(Math.max(...data.map(Math.abs)))) - 14);
    const round = (v: number): number => {
      const floor = Math.floor(v);
      return v - floor > 0.5 || (v - floor === 0.5 && floor % 2 !== 0) ? floor + 1 : floor;
    };
    return { codes: Int16Array.from(data, (v) => Math.max(-32767, Math.min(32767, round(v / unit)))), unit };
  };
  const product = (a: Float32Array, b: Float32Array, k: number): number[] => {
    const [x, w] = [integers(a), integers(b)];
    const out: number[] = [];
    for (let i = 0; i < a.length; i += k)
      for (let j = 0; j < b.length; j += k)
        out.push(Math.fround(dotInt16(x.codes.subarray(i, i + k), w.codes.subarray(j, j + k)) * x.unit * w.unit));
    return out;
  };

  test("forward and both gradients are integer products, bit for bit", () => {
    const [x, w, dy] = [matrix(4, 50), matrix(6, 50), matrix(4, 6)];
    expect([...values(dfp16MatMul(x, w))]).toEqual(product(values(x), values(w), 50));
    const [dx, dw] = tf.grads((a, b) => tf.sum(tf.mul(dfp16MatMul(a, b), dy)))([x, w]);
    expect([...values(dx)]).toEqual(product(values(dy), values(tf.transpose(w)), 6));
    expect([...values(dw)]).toEqual(product(values(tf.transpose(dy)), values(tf.transpose(x)), 4));
    near(dfp16MatMul(x, w), tf.matMul(x, w, false, true), 2e-3);
    expect(() => dfp16MatMul(tf.tensor2d([[NaN]]), tf.ones([1, 1]))).toThrow(refuse("E_VALUE"));
  });

  test("a zero operand", () => {
    expect([...values(dfp16MatMul(tf.zeros([1, 2]), tf.ones([3, 2])))]).toEqual([0, 0, 0]);
  });
});

describe("quantizeAware", () => {
  const model = (): tfl.Sequential => {
    const layers = [
      tfl.layers.conv2d({ inputShape: [6, 6, 2], filters: 4, kernelSize: 3, kernelInitializer: tfl.initializers.randomNormal({ seed: 1 }), activation: "relu", name: "conv" }), // prettier-ignore
      tfl.layers.depthwiseConv2d({ kernelSize: 3, depthwiseInitializer: tfl.initializers.randomNormal({ seed: 2 }), name: "depth" }),
      tfl.layers.flatten(),
      tfl.layers.dense({ units: 3, kernelInitializer: tfl.initializers.randomNormal({ seed: 3 }), name: "head" }),
    ];
    return tfl.sequential({ layers });
  };

  test("predict computes with quantized kernels and inputs, fit trains the float weights, remove undoes it", async () => {
    const [m, plain] = [model(), model()];
    const x = tf.tensor4d(normal(4 * 72), [4, 6, 6, 2]);
    const before = values(m.predict(x) as tf.Tensor);
    const aware = quantizeAware(m, { weights: format("int4_row"), skip: ["head"] });
    expect(aware.layers).toEqual(["conv", "depth"]);
    for (const [name, rows] of [["conv", [18, 4]], ["depth", [9, 4]]] as const) {
      const layer = plain.getLayer(name);
      const [kernel, ...rest] = layer.getWeights();
      layer.setWeights([tf.reshape(fakeQuantize(tf.reshape(kernel, [...rows]), format("int4_row"), { outputs: 1 }), kernel.shape), ...rest]);
    } // prettier-ignore
    near(m.predict(x) as tf.Tensor, plain.predict(x) as tf.Tensor, 1e-6);
    expect(values(m.predict(x) as tf.Tensor)).not.toEqual(before);
    aware.remove();
    expect(values(m.predict(x) as tf.Tensor)).toEqual(before);

    quantizeAware(m, { weights: format("int8_row"), activations: format("uint8_tensor_zp"), decay: 0.9 });
    m.compile({ optimizer: tf.train.sgd(0.01), loss: "meanSquaredError" });
    const kernel = values(m.getLayer("conv").getWeights()[0]).slice();
    const history = await m.fit(x, tf.ones([4, 3]), { epochs: 4, verbose: 0, shuffle: false });
    expect(history.history.loss.at(-1)).toBeLessThan(history.history.loss[0] as number);
    const after = values(m.getLayer("conv").getWeights()[0]);
    expect(after).not.toEqual(kernel);
    // the weights are float32, on no grid of 255 steps
    expect(values(fakeQuantize(tf.reshape(m.getLayer("conv").getWeights()[0], [18, 4]), format("int8_row"), { outputs: 1 }))).not.toEqual(
      after,
    );
  });

  test("what is refused", () => {
    expect(() => quantizeAware({}, { weights: format("int8_row") })).toThrow(TypeError);
  });
});
