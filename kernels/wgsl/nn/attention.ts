// Attention with grouped heads in WGSL: a workgroup for each query row, its keys in tiles of 64 with an online softmax
// (Milakov and Gimelshein, arXiv 1805.02867). Queries, keys, values and results lie anywhere, by strides in elements;
// the values of a head lie side by side.
import { entry } from "../product.ts";
import { groupMax, groupSum, header, SIZE, type Bound, type Fields } from "./shader.ts";

export interface AttentionShader {
  /** Values of a head, at most 256. */
  readonly head: number;
  /** A number is added to each score. */
  readonly mask: boolean;
  /** A logit for each head that has no value. */
  readonly sink: boolean;
  readonly softcap: boolean;
}

/** Largest head. */
export const MOST_HEAD = 256;

const sides = ["q", "k", "v", "y", "m"].flatMap((side) => ["b", "h", "t"].map((axis) => `${side}${axis}`));

/**
 * `group`: query heads of a key head. `causal`: token t sees keys up to past + t; `window` of them, 0 for all. `empty`:
 * the bits of what a row without a key gives.
 */
export const ATTENTION_FIELDS: Fields = ["heads", "group", "tokens", "rows", "keys", "past", "causal", "window", "empty", ...sides, "oq", "ok", "ov", "oy", "om", "osink", "scale$", "cap$"]; // prettier-ignore

/** Below every score: what is not seen keeps its weight at 0 without an infinity. */
const LOWEST = "-3.4028234e38";

/** Bindings: params, q, k, v, mask?, sink?, y. Workgroups: batch * heads * tokens = params.rows. */
export function attentionShader({ head, mask, sink, softcap }: AttentionShader): string {
  const buffers: Bound[] = [
    ["q", "array<f32>"],
    ["k", "array<f32>"],
    ["v", "array<f32>"],
    ...(mask ? [["mask", "array<f32>"] as const] : []),
    ...(sink ? [["sink", "array<f32>"] as const] : []),
    ["y", "array<f32>", "read_write"],
  ];
  const parts = Array.from({ length: Math.ceil(head / SIZE) }, (_, i) => i);
  const lane = (i: number): string => `id + ${i * SIZE}u`;
  const inside = (i: number, body: string): string => ((i + 1) * SIZE <= head ? body : `if (${lane(i)} < ${head}u) { ${body} }`);
  return `${header(ATTENTION_FIELDS, buffers)}${groupSum}${groupMax}
var<workgroup> query: array<f32, ${head}>;
var<workgroup> weights: array<f32, ${SIZE}>;
${entry(SIZE)} {
  let row = block.x + block.y * blocks.x;
  if (row >= params.rows) { return; }
  let token = row % params.tokens; let h = (row / params.tokens) % params.heads; let b = row / params.tokens / params.heads;
  let kv = h / params.group;
  for (var i = id; i < ${head}u; i += ${SIZE}u) { query[i] = q[params.oq + b * params.qb + h * params.qh + token * params.qt + i]; }
  var high = params.keys; var low = 0u;
  if (params.causal != 0u) {
    high = min(high, params.past + token + 1u);
    if (params.window != 0u && high > params.window) { low = high - params.window; }
  }
  let keys = params.ok + b * params.kb + kv * params.kh;
  let values = params.ov + b * params.vb + kv * params.vh;
  ${sink ? "var top = sink[params.osink + h]; var sum = 1.0;" : `var top = ${LOWEST}; var sum = 0.0;`}
  ${parts.map((i) => `var acc${i} = 0.0;`).join(" ")}
  workgroupBarrier();
  for (var base = low; base < high; base += ${SIZE}u) {
    let j = base + id;
    var score = ${LOWEST};
    if (j < high) {
      var s = 0.0;
      let at = keys + j * params.kt;
      for (var i = 0u; i < ${head}u; i++) { s += query[i] * k[at + i]; }
      s *= params.scale;
      ${softcap ? "s = params.cap * tanh(clamp(s / params.cap, -15.0, 15.0));" : ""}
      ${mask ? "s += mask[params.om + b * params.mb + h * params.mh + token * params.mt + j];" : ""}
      score = s;
    }
    let next = max(top, largest(score, id));
    let part = select(0.0, exp(score - next), j < high);
    weights[id] = part;
    let keep = exp(top - next);
    sum = sum * keep + total(part, id);
    top = next;
    ${parts.map((i) => `acc${i} *= keep;`).join(" ")}
    for (var n = 0u; n < min(${SIZE}u, high - base); n++) {
      let p = weights[n];
      let at = values + (base + n) * params.vt;
      ${parts.map((i) => inside(i, `acc${i} += p * v[at + ${lane(i)}];`)).join("\n      ")}
    }
    workgroupBarrier();
  }
  let dst = params.oy + b * params.yb + h * params.yh + token * params.yt;
  ${parts.map((i) => inside(i, `y[dst + ${lane(i)}] = select(acc${i} / sum, bitcast<f32>(params.empty), sum == 0.0);`)).join("\n  ")}
}
`;
}

export const attentionName = ({ head, mask, sink, softcap }: AttentionShader): string =>
  `f32_attention${head}${mask ? "_mask" : ""}${sink ? "_sink" : ""}${softcap ? "_cap" : ""}__wgsl`;
