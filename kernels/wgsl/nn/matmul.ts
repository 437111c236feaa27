// Products of two computed float32 matrices in WGSL: tiles of 16 x 16, any batch by strides.
import { entry } from "../product.ts";
import { header, type Fields } from "./shader.ts";

const TILE = 16;

/** [m, k] x [k, n]; batch o * inner + i of `outer` * `inner`, strides in elements. */
export const MATMUL_FIELDS: Fields = ["m", "n", "k", "batches", "inner", "ao", "ai", "bo", "bi", "oa", "ob"];

/** Workgroups: a tile of a batch each. */
export const matmulGroups = (m: number, n: number, batches: number): number => Math.ceil(m / TILE) * Math.ceil(n / TILE) * batches;

/** Bindings: params, a, b, y [batch, m, n]. */
export const matmulShader = (): string => `${header(MATMUL_FIELDS, [
  ["a", "array<f32>"],
  ["b", "array<f32>"],
  ["y", "array<f32>", "read_write"],
])}
var<workgroup> ta: array<f32, ${TILE * TILE}>;
var<workgroup> tb: array<f32, ${TILE * TILE}>;
${entry(TILE * TILE)} {
  let across = (params.n + ${TILE - 1}u) / ${TILE}u;
  let tiles = across * ((params.m + ${TILE - 1}u) / ${TILE}u);
  let number = block.x + block.y * blocks.x;
  let tile = number % tiles; let batch = number / tiles;
  if (batch >= params.batches) { return; }
  let o = batch / params.inner; let i = batch % params.inner;
  let r = (tile / across) * ${TILE}u + id / ${TILE}u; let c = (tile % across) * ${TILE}u + id % ${TILE}u;
  let first = params.oa + o * params.ao + i * params.ai; let second = params.ob + o * params.bo + i * params.bi;
  var sum = 0.0;
  for (var base = 0u; base < params.k; base += ${TILE}u) {
    let ka = base + id % ${TILE}u; let kb = base + id / ${TILE}u;
    ta[id] = 0.0; tb[id] = 0.0;
    if (r < params.m && ka < params.k) { ta[id] = a[first + r * params.k + ka]; }
    if (c < params.n && kb < params.k) { tb[id] = b[second + kb * params.n + c]; }
    workgroupBarrier();
    for (var j = 0u; j < ${TILE}u; j++) { sum += ta[(id / ${TILE}u) * ${TILE}u + j] * tb[j * ${TILE}u + id % ${TILE}u]; }
    workgroupBarrier();
  }
  if (r < params.m && c < params.n) { y[(batch * params.m + r) * params.n + c] = sum; }
}
`;
