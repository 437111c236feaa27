// Attention with grouped heads in WGSL: a workgroup for each query row, its keys in tiles of 64 with an online softmax
// (Milakov and Gimelshein, arXiv 1805.02867). Queries, keys, values and results lie anywhere, by strides in elements;
// the values of a head lie side by side, keys and values of a cache as cache.ts has them.
import { firstHalf, hasScales, type CacheKind, type ValueKind } from "../../wasm/nn/cache.ts";
import { entry } from "../product.ts";
import { cacheScale, cacheValue, perWord } from "./cache.ts";
import { groupMax, groupSum, header, SIZE, type Bound, type Fields } from "./shader.ts";

export interface AttentionShader {
  /** Values of a head, at most 256. */
  readonly head: number;
  /** A number is added to each score. */
  readonly mask: boolean;
  /** A logit for each head that has no value. */
  readonly sink: boolean;
  readonly softcap: boolean;
  /** What keys and values are kept as; strides of codes count words. */
  readonly kinds?: readonly [keys: CacheKind, values: ValueKind];
}

/** Largest head. */
export const MOST_HEAD = 256;

const sides = ["q", "k", "v", "y", "m"].flatMap((side) => ["b", "h", "t"].map((axis) => `${side}${axis}`));

/**
 * `group`: query heads of a key head. `causal`: token t sees keys up to past + t; `window` of them, 0 for all. `empty`:
 * the bits of what a row without a key gives.
 */
export const ATTENTION_FIELDS: Fields = ["heads", "group", "tokens", "rows", "keys", "past", "causal", "window", "empty", ...sides, "oq", "ok", "ov", "oy", "om", "osink", "capacity", "scale$", "cap$"]; // prettier-ignore

/** Below every score: what is not seen keeps its weight at 0 without an infinity. */
const LOWEST = "-3.4028234e38";

const wordOf = (side: string, row: string): string => `let ${side}_word = ${side}_words[kv * params.capacity + ${row}];`;

/** `s` = the product of a key and the query. */
function keyProduct(kind: CacheKind, head: number): string {
  if (kind === "float32") return `for (var i = 0u; i < ${head}u; i++) { s += query[i] * k[at + i]; }`;
  const per = perWord(kind);
  const sum = (from: number, to: number, half: 0 | 1): string => {
    const [scale, zero] = cacheScale(kind, "k_word", half);
    const products = Array.from(
      { length: per },
      (_, j) => `s${half} += query[i * ${per}u + ${j}u] * ${cacheValue(kind, "w", `${j}u`, "k_zero")};`,
    );
    return `{ var s${half} = 0.0; ${hasScales(kind) ? `let k_zero = ${zero};` : ""}
      for (var i = ${from / per}u; i < ${to / per}u; i++) { let w = k[at + i]; ${products.join(" ")} }
      s += s${half}${hasScales(kind) ? ` * ${scale}` : ""}; }`;
  };
  const middle = kind === "int4_halves" ? firstHalf(head) : head;
  const word = hasScales(kind) ? wordOf("k", "j") : "";
  return `${word} ${sum(0, middle, 0)} ${middle < head ? sum(middle, head, 1) : ""}`;
}

/** Bindings: params, q, k, v, k_words?, v_words?, mask?, sink?, y. Workgroups: batch * heads * tokens = params.rows. */
export function attentionShader({ head, mask, sink, softcap, kinds = ["float32", "float32"] }: AttentionShader): string {
  const buffers: Bound[] = [
    ["q", "array<f32>"],
    ...(["k", "v"] as const).map((side, i): Bound => [side, kinds[i] === "float32" ? "array<f32>" : "array<u32>"]),
    ...(["k", "v"] as const).filter((_, i) => hasScales(kinds[i])).map((side): Bound => [`${side}_words`, "array<u32>"]),
    ...(mask ? [["mask", "array<f32>"] as const] : []),
    ...(sink ? [["sink", "array<f32>"] as const] : []),
    ["y", "array<f32>", "read_write"],
  ];
  const [k, v] = kinds;
  const [valueScale, valueZero] = v === "float32" || !hasScales(v) ? ["1.0", "0.0"] : cacheScale(v, "v_word");
  const valueOf = (i: number): string =>
    v === "float32"
      ? `v[at + ${lane(i)}]`
      : cacheValue(v, `v[at + (${lane(i)}) / ${perWord(v)}u]`, `(${lane(i)}) % ${perWord(v)}u`, "v_zero");
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
      ${keyProduct(k, head)}
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
      ${hasScales(v) ? `${wordOf("v", "(base + n)")} let v_zero = ${valueZero};` : ""}
      let p = weights[n]${hasScales(v) ? ` * ${valueScale}` : ""};
      let at = values + (base + n) * params.vt;
      ${parts.map((i) => inside(i, `acc${i} += p * ${valueOf(i)};`)).join("\n      ")}
    }
    workgroupBarrier();
  }
  let dst = params.oy + b * params.yb + h * params.yh + token * params.yt;
  ${parts.map((i) => inside(i, `y[dst + ${lane(i)}] = select(acc${i} / sum, bitcast<f32>(params.empty), sum == 0.0);`)).join("\n  ")}
}
`;
}

export const attentionName = ({ head, mask, sink, softcap, kinds }: AttentionShader): string =>
  `${kinds === undefined ? "f32" : kinds.join("_")}_attention${head}${mask ? "_mask" : ""}${sink ? "_sink" : ""}${softcap ? "_cap" : ""}__wgsl`;
