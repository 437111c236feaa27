// Strided copies, reductions along an axis, and rotary embedding in WGSL: one invocation per element (or pair).
import { entry } from "../product.ts";
import { eachItem, header, SIZE, type Bound, type Fields } from "./shader.ts";

/** Dimensions of a copy. */
export const COPY_RANK = 6;

const axes = Array.from({ length: COPY_RANK }, (_, i) => i);

/** Sizes of the inner dimensions, strides and starts of both sides in elements. */
export const COPY_FIELDS: Fields = ["count", ...axes.slice(1).map((i) => `d${i}`), ...axes.map((i) => `f${i}`), ...axes.map((i) => `t${i}`), "src", "dst"]; // prettier-ignore

/** Bindings: params, x, y. */
export const copyShader = (): string => `${header(COPY_FIELDS, [
  ["x", "array<f32>"],
  ["y", "array<f32>", "read_write"],
])}${entry(SIZE)} {
  ${eachItem("params.count")}
  var rest = number; var src = params.src; var dst = params.dst;
  ${axes
    .slice(1)
    .reverse()
    .map((i) => `{ let at = rest % params.d${i}; rest = rest / params.d${i}; src += at * params.f${i}; dst += at * params.t${i}; }`)
    .join("\n  ")}
  y[dst + rest * params.t0] = x[src + rest * params.f0];
}
`;

export type ReduceOp = "sum" | "mean" | "max" | "min";

export const REDUCE_FIELDS: Fields = ["count", "axis", "inner", "ox"];

/** x [outer, axis, inner] to y [outer, inner]. Bindings: params, x, y. */
export function reduceShader(op: ReduceOp): string {
  const step = op === "max" || op === "min" ? `whole = select(${op}(whole, v), whole + v, v != v || whole != whole);` : "whole += v;";
  return `${header(REDUCE_FIELDS, [
    ["x", "array<f32>"],
    ["y", "array<f32>", "read_write"],
  ])}${entry(SIZE)} {
  ${eachItem("params.count")}
  let start = params.ox + (number / params.inner) * params.axis * params.inner + number % params.inner;
  var whole = x[start];
  for (var a = 1u; a < params.axis; a++) { let v = x[start + a * params.inner]; ${step} }
  y[number] = whole${op === "mean" ? " / f32(params.axis)" : ""};
}
`;
}

export interface RotaryShader {
  readonly interleaved: boolean;
  /** Rows of the tables by a list; else `first` + the token's number. */
  readonly positions: boolean;
}

/** `half`: pairs of a head that turn; the rest of `size` is copied. `row`: elements from row to row of the tables. */
export const ROTARY_FIELDS: Fields = ["tokens", "heads", "size", "half", "first", "row", "xt", "xh", "yt", "yh", "ox", "oy", "ocos", "osin", "opos"]; // prettier-ignore

/** Bindings: params, x, cos, sin, positions?, y. */
export function rotaryShader({ interleaved, positions }: RotaryShader): string {
  const buffers: Bound[] = [
    ["x", "array<f32>"],
    ["cos_table", "array<f32>"],
    ["sin_table", "array<f32>"],
    ...(positions ? [["positions", "array<u32>"] as const] : []),
    ["y", "array<f32>", "read_write"],
  ];
  return `${header(ROTARY_FIELDS, buffers)}${entry(SIZE)} {
  let lanes = params.half + (params.size - 2u * params.half);
  ${eachItem("params.tokens * params.heads * lanes")}
  let lane = number % lanes; let head = (number / lanes) % params.heads; let token = number / lanes / params.heads;
  let src = params.ox + token * params.xt + head * params.xh;
  let dst = params.oy + token * params.yt + head * params.yh;
  if (lane >= params.half) { let i = lane + params.half; y[dst + i] = x[src + i]; return; }
  let at = ${positions ? "positions[params.opos + token]" : "(params.first + token)"} * params.row + lane;
  let c = cos_table[params.ocos + at]; let s = sin_table[params.osin + at];
  let i = ${interleaved ? "2u * lane" : "lane"}; let j = ${interleaved ? "i + 1u" : "lane + params.half"};
  let a = x[src + i]; let b = x[src + j];
  y[dst + i] = a * c - b * s;
  y[dst + j] = b * c + a * s;
}
`;
}

export const rotaryName = ({ interleaved, positions }: RotaryShader): string =>
  `f32_rotary${interleaved ? "_interleaved" : ""}${positions ? "_positions" : ""}__wgsl`;
