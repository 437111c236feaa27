// Convolution and pooling in WGSL, in two dimensions (one: a height of 1): an invocation for each place of the result,
// of a convolution for several filters of its group at once, so that what it reads of the image serves them all.
import { entry } from "../product.ts";
import { chainFields, chainFunction, type ChainAfter } from "./chain.ts";
import { eachItem, header, SIZE, type Bound, type Fields } from "./shader.ts";

/** Image, kernel, strides, dilations, padding before, and result, each of both dimensions. */
const WINDOW: Fields = ["ih", "iw", "kh", "kw", "sh", "sw", "dh", "dw", "ph", "pw", "yh", "yw"];

/** A tap's place along one dimension. Transposed: only where the stride divides it. */
const place = (axis: string, at: string, d: string, transposed: boolean): string =>
  transposed
    ? `let r${axis} = ${at} + params.p${d} - k${axis} * params.d${d}; let i${axis} = r${axis} / params.s${d};
    if (i${axis} >= params.i${d} || r${axis} % params.s${d} != 0u) { continue; }`
    : `let i${axis} = ${at} * params.s${d} + k${axis} * params.d${d} - params.p${d};
    if (i${axis} >= params.i${d}) { continue; }`;

/** `body` for each tap of the window that lies in the image: `at` its place in the plane, `tap` its number. */
const eachTap = (body: string, transposed = false): string => `for (var ky = 0u; ky < params.kh; ky++) {
    ${place("y", "row", "h", transposed)}
    for (var kx = 0u; kx < params.kw; kx++) {
      ${place("x", "column", "w", transposed)}
      let at = iy * params.iw + ix; let tap = ky * params.kw + kx;
      ${body}
    }
  }`;

/** The place of the result, from its number among those of a plane. */
const PLACE = "let column = number % params.yw; let row = (number / params.yw) % params.yh; let rest = number / params.yw / params.yh;";

export interface ConvShader {
  /** Filters of an invocation: 1, or 4 where a group has as many. */
  readonly filters: 1 | 4;
  readonly bias: boolean;
  /** ConvTranspose: weights [channels, filters of a group, kernel]. */
  readonly transposed: boolean;
  /** Computed of its results: the chain's parameters follow its own, the chain's other operands the bias. */
  readonly after?: ChainAfter;
  /**
   * Sums of codes: x less `zero`, by codes of 16 bits, two in a word; times `factor`, one for all or for each filter
   * (`params.sa` 0 or 1, that of the bias `params.sb`).
   */
  readonly codes?: boolean;
  /** The bias is int32, and part of those sums. */
  readonly integers?: boolean;
}

/** `depth`: channels of a group; `filters` of a group. `count`: invocations. */
export const CONV_FIELDS: Fields = ["count", "groups", "depth", "filters", ...WINDOW, "ox", "ow", "ob", "oz", "oa", "sa", "sb"];

export const convFilters = (perGroup: number): 1 | 4 => (perGroup >= 4 ? 4 : 1);

export const convFields = ({ after }: ConvShader): Fields =>
  after === undefined ? CONV_FIELDS : [...CONV_FIELDS, ...chainFields(after.spec.operands.length).slice(1)];

/** Bindings: params, x, w, bias?, x0.., y. Invocations: batch * groups * ceil(filters / spec.filters) * oh * ow. */
export function convShader(spec: ConvShader): string {
  const { filters, bias, transposed, after, codes = false, integers = false } = spec;
  const more = (after?.spec.operands ?? []).flatMap((_, i): Bound[] => (i === after?.own ? [] : [[`x${i}`, "array<f32>"]]));
  const buffers: Bound[] = [["x", "array<f32>"], ["w", codes ? "array<u32>" : "array<f32>"], ...(codes ? ["zero", "factor"] : []).map((name): Bound => [name, "array<f32>"]), ...(bias ? [["bias", integers ? "array<i32>" : "array<f32>"] as const] : []), ...more, ["y", "array<f32>", "read_write"]]; // prettier-ignore
  const lanes = Array.from({ length: filters }, (_, i) => i);
  const each = (line: (i: number) => string, between = " "): string => lanes.map(line).join(between);
  const added = (i: number): string => `bias[params.ob + f${i} * params.sb]`;
  const sum = (i: number): string =>
    codes ? `f32(s${i}) * factor[params.oa + f${i} * params.sa]${bias && !integers ? ` + ${added(i)}` : ""}` : `s${i}`;
  return `${header(convFields(spec), buffers)}${after === undefined ? "" : chainFunction(after)}${entry(SIZE)} {
  ${eachItem("params.count")}
  ${PLACE}
  let sets = (params.filters + ${filters - 1}u) / ${filters}u;
  let first = (rest % sets) * ${filters}u; let group = (rest / sets) % params.groups; let b = rest / sets / params.groups;
  let plane = params.ih * params.iw; let taps = params.kh * params.kw;
  ${codes ? "let zero_code = i32(zero[params.oz]);" : ""}
  let image = params.ox + (b * params.groups + group) * params.depth * plane;
  ${each((i) => `let f${i} = group * params.filters + min(first + ${i}u, params.filters - 1u); let w${i} = params.ow + ${transposed ? `(group * (params.depth - 1u) * params.filters + f${i})` : `f${i} * params.depth`} * taps; var s${i} = ${bias && codes === integers ? added(i) : codes ? "0i" : "0.0"};`, "\n  ")}
  ${eachTap(
    `for (var c = 0u; c < params.depth; c++) {
        let v = ${codes ? "i32(x[image + c * plane + at]) - zero_code" : "x[image + c * plane + at]"}; let k = c * ${transposed ? "params.filters * taps" : "taps"} + tap;
        ${each((i) => (codes ? `s${i} += v * extractBits(bitcast<i32>(w[(w${i} + k) / 2u]), 16u * ((w${i} + k) % 2u), 16u);` : `s${i} += v * w[w${i} + k];`))}
      }`,
    transposed,
  )}
  let dst = b * params.groups * params.filters * params.yh * params.yw + row * params.yw + column;
  ${each((i) => `if (first + ${i}u < params.filters) { let at = dst + f${i} * params.yh * params.yw; y[at] = ${after === undefined ? sum(i) : `after(at, ${sum(i)})`}; }`, "\n  ")}
}
`;
}

export const convName = ({ filters, bias, transposed, after, codes, integers }: ConvShader): string =>
  `${codes === true ? "codes" : "f32"}_conv${transposed ? "transpose" : ""}_${filters}${bias ? (integers === true ? "_sums" : "_bias") : ""}${after === undefined ? "" : `_chain${after.spec.nodes.length}`}__wgsl`;

/** `padding`: an average counts it. */
export const POOL_FIELDS: Fields = ["count", ...WINDOW, "padding", "ox"];

/** Planes of x to planes of y. Bindings: params, x, y. */
export const poolShader = (op: "max" | "average"): string => `${header(POOL_FIELDS, [
  ["x", "array<f32>"],
  ["y", "array<f32>", "read_write"],
])}${entry(SIZE)} {
  ${eachItem("params.count")}
  ${PLACE}
  let image = params.ox + rest * params.ih * params.iw;
  var whole = 0.0; var count = 0u;
  ${eachTap(`let v = x[image + at];
      whole = ${op === "average" ? "whole + v" : "select(select(max(whole, v), whole + v, v != v || whole != whole), v, count == 0u)"};
      count++;`)}
  y[number] = whole${op === "average" ? " / f32(select(count, params.kh * params.kw, params.padding != 0u))" : ""};
}
`;

/** What lies outside is this index. */
export const OUTSIDE = 0xffffffff;

/** `before` and `after`: sizes of the axis; `taps` of each place: index and weight of `table`. */
export const RESAMPLE_FIELDS: Fields = ["count", "before", "after", "inner", "taps", "ox", "outside$"];

/** x [outer, before, inner] to y [outer, after, inner]: weighted sums along the axis. Bindings: params, x, table, y. */
export const resampleShader = (): string => `${header(RESAMPLE_FIELDS, [
  ["x", "array<f32>"],
  ["table", "array<vec2u>"],
  ["y", "array<f32>", "read_write"],
])}${entry(SIZE)} {
  ${eachItem("params.count")}
  let i = (number / params.inner) % params.after;
  let start = params.ox + (number / params.inner / params.after) * params.before * params.inner + number % params.inner;
  var sum = 0.0;
  for (var t = 0u; t < params.taps; t++) {
    let tap = table[i * params.taps + t]; let weight = bitcast<f32>(tap.y);
    if (tap.x == ${OUTSIDE}u) { sum = params.outside; } else if (weight != 0.0) { sum += weight * x[start + tap.x * params.inner]; }
  }
  y[number] = sum;
}
`;
