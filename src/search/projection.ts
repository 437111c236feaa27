// Fewer or rotated dimensions before packing: principal components, a random rotation, or the first dimensions of
// embeddings that were trained for it (Matryoshka, arXiv 2205.13147). What is fitted is plain data: a matrix and a
// mean.
import { LowbitError } from "../../formats/core/errors.ts";
import { format } from "../../formats/registry.ts";
import { wasmSync } from "../backends/wasm/backend.ts";
import type { SyncLayer } from "../backends/types.ts";
import { orthogonalRotation } from "../quantize/rotation.ts";
import { prepareMatmul } from "../tensor/matmul.ts";
import { quantize } from "../tensor/quantize/index.ts";
import { tensor } from "../tensor/tensor.ts";
import { symmetricEigen } from "./eigen.ts";
import type { Fit, Metric, Projection } from "./types.ts";

const METHODS: readonly string[] = ["pca", "rotation", "truncate"];
const SAMPLE = 20000;

/**
 * Fits a projection to vectors [n, from]. PCA takes the second moments about zero for cosine and dot, whose products it
 * then keeps best, and about the mean for euclidean.
 * @throws TypeError, RangeError for options that are none; LowbitError E_SHAPE, E_VALUE
 * @example
 * const projection = fitProjection(vectors, 64, { method: "pca", dims: 32 }); // once, for several indexes
 * createIndex(vectors, { dims: 64, precision: "int8", fit: projection }).search(query, { k: 10 }).ids.length // 10
 */
export function fitProjection(vectors: Float32Array, from: number, fit: Fit, metric: Metric = "cosine"): Projection {
  const { method, seed = 1, sample = SAMPLE } = fit;
  if (!METHODS.includes(method))
    throw new TypeError(`fit method: expected "pca", "rotation" or "truncate", got ${JSON.stringify(method)}.`);
  const to = fit.dims ?? (method === "truncate" ? NaN : from);
  if (!Number.isSafeInteger(to) || to < 1 || to > from)
    throw new RangeError(`fit dims: expected an integer from 1 to ${from}, the dimensions of the vectors, got ${fit.dims}.`);
  if (!Number.isSafeInteger(sample) || sample < 1) throw new RangeError(`fit sample: expected a positive integer, got ${sample}.`);
  if (method === "truncate") return { method, from, to, matrix: null, mean: null };
  if (method === "rotation") {
    const matrix = Float32Array.from(
      orthogonalRotation(from, seed)
        .matrix()
        .subarray(0, to * from),
    );
    return { method, from, to, matrix, mean: null };
  }
  const rows = vectors.length / from;
  if (!Number.isInteger(rows) || rows < 2)
    throw new LowbitError("E_SHAPE", `fit pca: expected at least two vectors of ${from} numbers, got ${vectors.length} numbers.`);
  const { moment, mean } = secondMoments(vectors, from, Math.min(rows, sample), metric);
  const { vectors: components } = symmetricEigen(moment, from);
  return { method, from, to, matrix: Float32Array.from(components.subarray(0, to * from)), mean };
}

/**
 * The mean of products x x^T over evenly spaced vectors: of unit vectors for cosine, about their mean for euclidean.
 */
function secondMoments(
  vectors: Float32Array,
  k: number,
  count: number,
  metric: Metric,
): { moment: Float64Array; mean: Float32Array | null } {
  const rows = vectors.length / k;
  const at = (i: number): number => Math.floor((i * rows) / count) * k;
  const mean = new Float64Array(k);
  if (metric === "euclidean")
    for (let i = 0; i < count; i++) for (let j = 0, from = at(i); j < k; j++) mean[j] += vectors[from + j] / count;
  const moment = new Float64Array(k * k);
  const step = Math.min(count, 512);
  const part = new Float64Array(step * k);
  const { product } = wasmSync().float64;
  for (let first = 0; first < count; first += step) {
    const depth = Math.min(step, count - first);
    for (let r = 0; r < depth; r++) {
      const from = at(first + r);
      let size = 0;
      for (let j = 0; j < k; j++) {
        const v = vectors[from + j] - mean[j];
        part[r * k + j] = v;
        size += v * v;
      }
      if (!(size < Infinity))
        throw new LowbitError("E_VALUE", `fit pca: expected finite numbers, got others in vector ${from / k}. Repair the data.`);
      if (metric === "cosine" && size > 0) for (let j = 0, f = 1 / Math.sqrt(size); j < k; j++) part[r * k + j] *= f;
    }
    const operand = { data: part, at: 0, ld: k };
    product({ data: moment, at: 0, ld: k }, operand, operand, { m: k, n: k, depth }, 1 / count, false);
  }
  return { moment, mean: metric === "euclidean" ? Float32Array.from(mean) : null };
}

/** A projection as a function on vectors [n, from]. `dispose` frees its matrix. */
export interface Projector {
  apply(x: Float32Array): Float32Array;
  dispose(): void;
}

/** @throws TypeError, LowbitError E_SHAPE for what is no projection */
export function projector(p: Projection): Projector {
  checkProjection(p);
  const { from, to, matrix, mean } = p;
  if (matrix === null) {
    const apply = (x: Float32Array): Float32Array => {
      const out = new Float32Array((x.length / from) * to);
      for (let r = 0; r * from < x.length; r++) out.set(x.subarray(r * from, r * from + to), r * to);
      return out;
    };
    return { apply, dispose: () => undefined };
  }
  let layer: SyncLayer | null = null;
  return {
    apply(x) {
      layer ??= prepareMatmul(quantize(tensor(matrix, [to, from]), format("float32")), { backend: "wasm", activations: "float32" });
      let input = x;
      if (mean !== null) {
        input = x.slice();
        for (let i = 0; i < input.length; i++) input[i] -= mean[i % from];
      }
      const rows = x.length / from;
      const out = new Float32Array(rows * to);
      // rows of a pass: what a product stages beside the result
      const step = 4096;
      for (let r = 0; r < rows; r += step) {
        const many = Math.min(step, rows - r);
        layer.run(input.subarray(r * from, (r + many) * from), many, out.subarray(r * to, (r + many) * to));
      }
      return out;
    },
    dispose() {
      layer?.dispose();
      layer = null;
    },
  };
}

function checkProjection(p: Projection): void {
  const { from, to, matrix, mean } = p;
  const whole = (n: unknown): boolean => Number.isSafeInteger(n) && (n as number) > 0;
  const floats = (x: unknown, length: number, most: number): boolean =>
    x === null || (x instanceof Float32Array && x.length === length && x.every((v) => Math.abs(v) <= most));
  if (!METHODS.includes(p.method) || !whole(from) || !whole(to) || to > from)
    throw new TypeError(
      `projection: expected { method, from, to, matrix, mean } as fitProjection makes it, got method ${String(p.method)}.`,
    );
  if (!floats(matrix, from * to, 1.001) || !floats(mean, from, 1e17) || (matrix === null && p.method !== "truncate"))
    throw new LowbitError(
      "E_SHAPE",
      `projection: expected a matrix [${to}, ${from}] of orthonormal rows and a finite mean of ${from}, got others. Fit it with fitProjection.`,
    );
}
