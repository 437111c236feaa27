// Convolution and pooling against their definition in binary64, and pooling's rounding up and counts against
// onnxruntime: kernels, strides, dilations and pads of every kind, groups, depthwise with a multiplier, 1-D, depth
// beyond a panel, odd widths; one thread and two; guards around what is written.
import * as ort from "onnxruntime-node";
import { describe, expect, it } from "vitest";
import type { EngineMemory } from "../../../../src/backends/wasm/memory.ts";
import {
  convolution,
  pooling,
  runJobs,
  type ConvShape,
  type WindowPlan,
  type WindowShape,
} from "../../../../src/backends/wasm/nn/convolution.ts";
import { random } from "../../../helpers/random.ts";
import * as build from "../../../onnx/build.ts";
import { memories } from "./bench.ts";

const all = memories();
const rng = random(31);
const normal = (n: number): Float32Array => Float32Array.from({ length: n }, () => rng.normal());

const image: WindowShape = { batch: 1, channels: 1, size: [9, 11], kernel: [3, 3], strides: [1, 1], dilations: [1, 1], pads: [[0, 0], [0, 0]] }; // prettier-ignore

/** Runs a plan on operands between guards. */
function runPlan(memory: EngineMemory, plan: WindowPlan, x: Float32Array, planes: number, w: Float32Array = new Float32Array(0), bias?: Float32Array): Float32Array {
  const length = planes * plan.output[0] * plan.output[1];
  const parts = [x, w, bias ?? new Float32Array(0), new Float32Array(plan.table.buffer), new Float32Array(length).fill(NaN)];
  const region = memory.allocate(parts.reduce((sum, part) => sum + 4 * part.length + 32, 0));
  const scratch = memory.allocate(plan.scratchBytes + 8);
  const addresses: number[] = [];
  let at = region.address + 4;
  for (const part of parts) {
    addresses.push(at);
    memory.floats(at, part.length).set(part);
    at += 4 * part.length + 16;
  }
  const end = addresses[4] + 4 * length;
  for (const guard of [addresses[4] - 4, end, scratch.address + plan.scratchBytes]) memory.floats(guard, 1)[0] = 77;
  runJobs(memory, plan.jobs({ x: addresses[0], w: addresses[1], bias: bias === undefined ? 0 : addresses[2], table: addresses[3], y: addresses[4], scratch: scratch.address }));
  for (const guard of [addresses[4] - 4, end, scratch.address + plan.scratchBytes]) expect(memory.floats(guard, 1)[0]).toBe(77);
  const y = memory.floats(addresses[4], length).slice();
  region.free();
  scratch.free();
  return y;
} // prettier-ignore

/** Walks the taps of an output: `each(value or null outside, tap)`. */
function taps(
  s: WindowShape,
  x: Float32Array,
  plane: number,
  oy: number,
  ox: number,
  each: (value: number | null, tap: number) => void,
): void {
  for (let ky = 0; ky < s.kernel[0]; ky++)
    for (let kx = 0; kx < s.kernel[1]; kx++) {
      const iy = oy * s.strides[0] - s.pads[0][0] + ky * s.dilations[0];
      const ix = ox * s.strides[1] - s.pads[1][0] + kx * s.dilations[1];
      const inside = iy >= 0 && ix >= 0 && iy < s.size[0] && ix < s.size[1];
      each(inside ? x[(plane * s.size[0] + iy) * s.size[1] + ix] : null, ky * s.kernel[1] + kx);
    }
}

function checkConv(memory: EngineMemory, s: ConvShape, withBias: boolean): void {
  const width = s.channels / s.groups;
  const area = s.kernel[0] * s.kernel[1];
  const [x, w] = [normal(s.batch * s.channels * s.size[0] * s.size[1]), normal(s.outputs * width * area)];
  const bias = withBias ? normal(s.outputs) : undefined;
  const plan = convolution(memory, s);
  const y = runPlan(memory, plan, x, s.batch * s.outputs, w, bias);
  const [height, columns] = plan.output;
  let i = 0;
  for (let b = 0; b < s.batch; b++)
    for (let o = 0; o < s.outputs; o++)
      for (let oy = 0; oy < height; oy++)
        for (let ox = 0; ox < columns; ox++, i++) {
          let [sum, size] = [bias?.[o] ?? 0, Math.abs(bias?.[o] ?? 0)];
          for (let c = 0; c < width; c++)
            taps(s, x, b * s.channels + Math.floor(o / (s.outputs / s.groups)) * width + c, oy, ox, (value, tap) => {
              const product = (value ?? 0) * w[(o * width + c) * area + tap];
              sum += product;
              size += Math.abs(product);
            });
          const bound = (width * area + 2) * 2 ** -24 * size;
          if (!(Math.abs(y[i] - sum) <= bound))
            throw new Error(`${JSON.stringify(s)} at ${b} ${o} ${oy} ${ox}: expected ${sum}, got ${y[i]}`);
        }
  expect(i).toBe(y.length);
}

const SHAPES: readonly (readonly [string, Partial<ConvShape>])[] = [
  ["no pads", {}],
  ["pads of every size", { pads: [[2, 1], [0, 3]] }],
  ["strides of two", { strides: [2, 2], pads: [[1, 1], [1, 1]] }],
  ["strides of three", { strides: [3, 3], size: [14, 19] }],
  ["dilations", { dilations: [2, 3], size: [12, 15], pads: [[1, 2], [3, 0]] }],
  ["one by one", { kernel: [1, 1] }],
  ["one by one, strides", { kernel: [1, 1], strides: [2, 2] }],
  ["1-D", { size: [1, 50], kernel: [1, 3], pads: [[0, 0], [1, 1]] }],
  ["1-D, stride of two, long kernel", { size: [1, 67], kernel: [1, 10], strides: [1, 2] }],
  ["an image as large as the kernel", { size: [3, 3] }],
  ["wide rows", { size: [4, 300] }],
  ["columns", { size: [40, 1], kernel: [5, 1] }],
]; // prettier-ignore

describe("convolution", () => {
  it.each(SHAPES)("is its definition: %s", (_, change) => {
    for (const memory of all)
      for (const [channels, outputs, groups] of [[3, 7, 1], [4, 8, 2], [6, 6, 6], [3, 6, 3], [1, 5, 1]])
        checkConv(memory, { ...image, batch: groups === 1 ? 2 : 1, channels, outputs, groups, ...change }, groups !== 2);
  }); // prettier-ignore

  it("depth beyond a panel, many outputs, batches", () => {
    for (const memory of all) {
      checkConv(memory, { ...image, channels: 70, outputs: 13, groups: 1, size: [5, 9] }, true);
      checkConv(memory, { ...image, channels: 20, outputs: 250, groups: 1, size: [4, 7] }, false);
      checkConv(memory, { ...image, batch: 2, channels: 3, outputs: 3, groups: 3, size: [33, 35], pads: [[1, 1], [1, 1]] }, true);
      checkConv(memory, { ...image, batch: 2, channels: 2, outputs: 3, groups: 1, size: [20, 50], pads: [[1, 1], [1, 1]] }, true);
    }
  }); // prettier-ignore

  it("refuses what does not fit, in words", () => {
    const [memory] = all;
    const shape = { ...image, outputs: 2, groups: 1 };
    expect(() => convolution(memory, { ...shape, kernel: [10, 3] })).toThrow("kernel within the padded image");
    expect(() => convolution(memory, { ...shape, strides: [0, 1] })).toThrow(RangeError);
    expect(() => convolution(memory, { ...shape, pads: [[-1, 0], [0, 0]] })).toThrow(RangeError);
    expect(() => convolution(memory, { ...shape, channels: 3, groups: 2 })).toThrow("multiple of 2 groups");
  }); // prettier-ignore
});

async function peer(op: "MaxPool" | "AveragePool", s: WindowShape, x: Float32Array, countPadding: boolean): Promise<ort.Tensor> {
  const dims = [s.batch, s.channels, ...s.size];
  const ints = (values: readonly number[]): { ints: number[] } => ({ ints: [...values] });
  const node = build.node(op, ["x"], ["y"], {
    kernel_shape: ints(s.kernel),
    strides: ints(s.strides),
    dilations: ints(s.dilations),
    pads: ints([s.pads[0][0], s.pads[1][0], s.pads[0][1], s.pads[1][1]]),
    ceil_mode: s.ceil === true ? 1n : 0n,
    ...(op === "AveragePool" ? { count_include_pad: countPadding ? 1n : 0n } : {}),
  });
  const graph = build.graph({ input: [build.value("x", build.T.FLOAT, dims)], output: [build.value("y", build.T.FLOAT, ["a", "b", "c", "d"])], initializer: [], node: [node] });
  const session = await ort.InferenceSession.create(build.encode(build.model(graph, { opset: 19, ir: 9 })), { logSeverityLevel: 4, intraOpNumThreads: 1 });
  const { y } = await session.run({ x: new ort.Tensor("float32", x, dims) });
  await session.release();
  return y;
} // prettier-ignore

describe("pooling", () => {
  it("equals onnxruntime: pads, strides, dilations, rounding up, counts of the padding", async () => {
    const shapes: Partial<WindowShape>[] = [
      {},
      { kernel: [2, 2], strides: [2, 2] },
      { strides: [2, 2], pads: [[1, 1], [1, 1]] },
      { strides: [2, 2], ceil: true },
      { kernel: [2, 3], strides: [3, 2], ceil: true, pads: [[0, 1], [1, 0]] },
      { kernel: [3, 2], strides: [1, 3], size: [20, 40], pads: [[1, 0], [0, 1]] },
      { kernel: [2, 2], dilations: [2, 2], size: [12, 30] },
      { size: [1, 33], kernel: [1, 4], strides: [1, 2] },
    ]; // prettier-ignore
    for (const change of shapes)
      for (const [kind, op, countPadding] of [["max", "MaxPool", false], ["average", "AveragePool", false], ["average", "AveragePool", true]] as const) {
        const s: WindowShape = { ...image, batch: 2, channels: 3, ...change };
        const x = normal(6 * s.size[0] * s.size[1]);
        const expected = await peer(op, s, x, countPadding);
        for (const memory of all) {
          const plan = pooling(memory, { ...s, kind, countPadding });
          expect([2, 3, ...plan.output]).toEqual([...expected.dims]);
          const y = runPlan(memory, plan, x, 6);
          const wrong = y.findIndex((v, i) => !(Math.abs(v - (expected.data as Float32Array)[i]) <= (kind === "max" ? 0 : 1e-6)));
          expect(wrong, `${op} ${JSON.stringify(s)}: ${y[wrong]} ${String(expected.data[wrong])}`).toBe(-1);
        }
      }
  }); // prettier-ignore
});
