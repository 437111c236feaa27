// Norms and softmax over rows in WGSL: a workgroup for each row, float32 sums.
import { entry } from "../product.ts";
import { groupMax, groupSum, header, SIZE, type Bound, type Fields } from "./shader.ts";

export interface NormShader {
  readonly kind: "rms" | "layer";
  /** x + skip + addend is normed, a row of `addend` for all rows. */
  readonly skip: boolean;
  readonly addend: boolean;
  readonly shift: boolean;
  /** That sum is written too. */
  readonly sum: boolean;
}

export const NORM_FIELDS: Fields = ["rows", "width", "ox", "oskip", "oaddend", "oscale", "oshift", "epsilon$"];

/** Bindings: params, x, skip?, addend?, scale, shift?, y, sum?. Offsets in elements; results from the start. */
export function normShader({ kind, skip, addend, shift, sum }: NormShader): string {
  const buffers: Bound[] = [["x", "array<f32>"]];
  if (skip) buffers.push(["skip", "array<f32>"]);
  if (addend) buffers.push(["addend", "array<f32>"]);
  buffers.push(["scale", "array<f32>"]);
  if (shift) buffers.push(["shift", "array<f32>"]);
  buffers.push(["y", "array<f32>", "read_write"]);
  if (sum) buffers.push(["sum", "array<f32>", "read_write"]);
  const term = `x[params.ox + at]${skip ? " + skip[params.oskip + at]" : ""}${addend ? " + addend[params.oaddend + i]" : ""}`;
  const each = `for (var i = id; i < params.width; i += ${SIZE}u) { let at = row * params.width + i; let v = ${term};`;
  const mean = kind === "rms" ? "let mean = 0.0;" : `var s = 0.0; ${each} s += v; } let mean = total(s, id) / f32(params.width);`;
  return `${header(NORM_FIELDS, buffers)}${groupSum}${entry(SIZE)} {
  let row = block.x + block.y * blocks.x;
  if (row >= params.rows) { return; }
  ${mean}
  var q = 0.0;
  ${each} let d = v - mean; q += d * d; }
  let factor = 1.0 / sqrt(total(q, id) / f32(params.width) + params.epsilon);
  ${each}
    y[at] = (v - mean) * factor * scale[params.oscale + i]${shift ? " + shift[params.oshift + i]" : ""};
    ${sum ? "sum[at] = v;" : ""}
  }
}
`;
}

export const SOFTMAX_FIELDS: Fields = ["rows", "width", "ox"];

/** Softmax of rows. Bindings: params, x, y. */
export const softmaxShader = (): string => `${header(SOFTMAX_FIELDS, [
  ["x", "array<f32>"],
  ["y", "array<f32>", "read_write"],
])}${groupSum}${groupMax}${entry(SIZE)} {
  let row = block.x + block.y * blocks.x;
  if (row >= params.rows) { return; }
  let start = row * params.width;
  var top = -3.4028234e38;
  for (var i = id; i < params.width; i += ${SIZE}u) { top = max(top, x[params.ox + start + i]); }
  top = largest(top, id);
  var s = 0.0;
  for (var i = id; i < params.width; i += ${SIZE}u) { let e = exp(x[params.ox + start + i] - top); s += e; y[start + i] = e; }
  s = total(s, id);
  for (var i = id; i < params.width; i += ${SIZE}u) { y[start + i] = y[start + i] / s; }
}
`;

export const normName = ({ kind, skip, addend, shift, sum }: NormShader): string =>
  `f32_${kind}norm${skip ? "_skip" : ""}${addend ? "_addend" : ""}${shift ? "_shift" : ""}${sum ? "_sum" : ""}__wgsl`;
