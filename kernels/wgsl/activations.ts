// Activations made ready for the product shaders: quantized by the rule of kernels/activations.ts (scale = amax / max,
// code = rne(x / scale), float32 steps), or laid out with padding. `codes`: four int8 to a word, for int16 the high
// bytes of a row's codes before the low ones, and per group scale and sum; `values`: code * scale, in place of x.
import { activationMax, type ActivationBits } from "../activations.ts";
import { bindings, entry, params } from "./product.ts";
import { CHUNK } from "./weight.ts";

export interface QuantizeSpec {
  /** Of the codes; those of fewer than 8 are stored as bytes. */
  readonly bits: ActivationBits;
  readonly output: "codes" | "values";
  /** Elements that an entry of `facts` covers, where the output is codes: 8, 16 or 32. */
  readonly unit: number;
}

export interface LayoutSpec {
  readonly from: "float32" | "float16";
  readonly to: "float32" | "float16";
}

const SIZE = 64;

/** Bits of a float32 that is NaN; made at run time, because WGSL allows no NaN among its constants. */
const NOT_FINITE = "0x7f800000u";

/** One invocation per group of one row. `part` elements share a scale. */
export function quantizeShader(spec: QuantizeSpec): string {
  const max = activationMax(spec.bits);
  const codes = spec.output === "codes";
  const { unit } = spec;
  const planes = spec.bits === 16 ? 2 : 1;
  const scale = `
  var top = 0u;
  for (var i = begin; i < to; i++) { top = max(top, bitcast<u32>(x[r * params.k + i]) & 0x7fffffffu); }
  var scale = bitcast<f32>(top) / ${max}.0;
  if (top >= ${NOT_FINITE}) { scale = bitcast<f32>(top | 0x7fc00000u); }
  let usable = top < ${NOT_FINITE} && scale > 0.0;`;
  const code = `fn code(v: f32, scale: f32) -> i32 { return clamp(i32(round(v / scale)), -${max}, ${max}); }`;
  const list: [string, string, "uniform" | "storage, read" | "storage, read_write"][] = [
    ["params", "Params", "uniform"],
    ["x", "array<f32>", "storage, read"],
  ];
  if (codes) list.push(["codes", "array<u32>", "storage, read_write"], ["facts", "array<vec2u>", "storage, read_write"]);
  else list.push(["values", "array<f32>", "storage, read_write"]);
  const body = codes
    ? `
  let g = number % params.groups; let r = number / params.groups;
  if (r >= params.m) { return; }
  let begin = min(g * params.part, params.k); let to = min(begin + params.part, params.k);
  ${scale}
  // all quads of the group as stored; those beyond k are zero
  var sum = 0;
  for (var j = 0u; j < params.group / 4u; j++) {
    ${Array.from({ length: planes }, (_, p) => `var word${p} = 0u;`).join(" ")}
    for (var b = 0u; b < 4u; b++) {
      let i = begin + j * 4u + b;
      if (i < to && usable) {
        let q = code(x[r * params.k + i], scale);
        sum += q;
        ${
          planes === 1
            ? "word0 |= (u32(q) & 255u) << (8u * b);"
            : "let low = ((q + 128) & 255) - 128; word0 |= (u32((q - low) >> 8u) & 255u) << (8u * b); word1 |= (u32(low) & 255u) << (8u * b);"
        }
      }
    }
    let at = (g * params.group) / 4u + j;
    ${Array.from({ length: planes }, (_, p) => `codes[(r * ${planes}u + ${p}u) * params.chunks * 8u + at] = word${p};`).join(" ")}
    if (((j + 1u) * 4u) % ${unit}u == 0u) {
      facts[(r * params.chunks * ${CHUNK}u + g * params.group + j * 4u) / ${unit}u] = vec2u(bitcast<u32>(scale), bitcast<u32>(sum));
      sum = 0;
    }
  }`
    : `
  let groups = (params.k + params.part - 1u) / params.part;
  let g = number % groups; let r = number / groups;
  if (r >= params.m) { return; }
  let begin = g * params.part; let to = min(begin + params.part, params.k);
  ${scale}
  for (var i = begin; i < to; i++) {
    var v = scale;
    if (top < ${NOT_FINITE}) { v = 0.0; if (usable) { v = f32(code(x[r * params.k + i], scale)) * scale; } }
    values[r * params.k + i] = v;
  }`;
  return `${params}
${bindings(list)}
${code}
${entry(SIZE)} {
  let number = (block.x + block.y * blocks.x) * ${SIZE}u + id;${body}
}
`;
}

/** One invocation per quad: x [m, k] to rows of whole chunks, groups where the weight wants them, zeros between. */
export function layoutShader(spec: LayoutSpec): string {
  const half = spec.to === "float16";
  const value = spec.from === "float32" ? "x[i]" : "select(unpack2x16float(x[i >> 1u]).x, unpack2x16float(x[i >> 1u]).y, (i & 1u) == 1u)";
  return `${params}
${bindings([
  ["params", "Params", "uniform"],
  ["x", spec.from === "float32" ? "array<f32>" : "array<u32>", "storage, read"],
  ["values", half ? "array<vec2u>" : "array<vec4f>", "storage, read_write"],
])}
fn element(r: u32, at: u32) -> f32 {
  let within = at % params.group; let k = (at / params.group) * params.span + within;
  if (within >= params.span || k >= params.k) { return 0.0; }
  let i = r * params.k + k;
  return ${value};
}
${entry(SIZE)} {
  let number = (block.x + block.y * blocks.x) * ${SIZE}u + id;
  let quads = params.chunks * 8u;
  let r = number / quads; let at = (number % quads) * 4u;
  if (r >= params.m) { return; }
  let v = vec4f(element(r, at), element(r, at + 1u), element(r, at + 2u), element(r, at + 3u));
  values[number] = ${half ? "vec2u(pack2x16float(v.xy), pack2x16float(v.zw))" : "v"};
}
`;
}

/** Workgroups of a preparation of `count` groups or quads. */
export const activationGroups = (count: number): number => Math.ceil(count / SIZE);
