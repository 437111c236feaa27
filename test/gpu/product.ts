// What suites of products on the WebGPU backend share: weights, backends at lowered limits, and a product's check
// against the oracle, whose bound is computed from the data.
import { expect } from "vitest";
import type { PackedTensor } from "../../formats/index.ts";
import { format } from "../../formats/index.ts";
import type { GpuRoot } from "../../kernels/wgsl/api.ts";
import type { RuntimeOptions } from "../../kernels/wgsl/runtime.ts";
import { createWebGpu, type GpuPrepareOptions, type WebGpuBackend } from "../../src/backends/webgpu/backend.ts";
import { connect } from "../../src/backends/webgpu/device.ts";
import { prepareMatmul, quantize, tensor } from "../../src/index.ts";
import { expectedProduct } from "../helpers/products.ts";
import { entryPoint } from "./adapter.ts";

let seed = 1;
export const random = (): number => (seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0) / 2 ** 32;
const normal = (): number => Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random());
export const data = (n: number, scale = 1): Float32Array => Float32Array.from({ length: n }, () => normal() * scale);
export const weight = (name: string, n: number, k: number): PackedTensor => quantize(tensor(data(n * k), [n, k]), format(name));

export async function backendWith(options: Omit<RuntimeOptions, "own">): Promise<WebGpuBackend> {
  return createWebGpu((await connect({ gpu: (await entryPoint()) as unknown as GpuRoot })).device, { own: true, ...options });
}

/** Runs a product; fails beyond the bound; returns how many values it compared. */
export async function checkProduct(
  on: WebGpuBackend,
  w: PackedTensor,
  m: number,
  options: GpuPrepareOptions = {},
  x = data(m * w.k),
): Promise<number> {
  using layer = prepareMatmul(w, { ...options, backend: on });
  const y = await layer.runAsync(x, m);
  const { activations, kernel } = layer.explain();
  const bits = /^int/.test(activations) ? Number(activations.slice(3)) : null;
  // storing as float16 may round to either neighbour
  const expected = expectedProduct(w, x, m, bits, activations === "float16" ? 2 ** -10 : 0);
  for (let i = 0; i < y.length; i++)
    if (!(Math.abs(y[i] - expected.y[i]) <= expected.bound[i]))
      expect.fail(`${kernel} m = ${m}, [${w.rows}, ${w.k}] ${w.format.name}: y[${i}] = ${y[i]}, expected ${expected.y[i]} within ${expected.bound[i]}`); // prettier-ignore
  return y.length;
}
