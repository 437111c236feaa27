// Keys and values in fewer bits on a device: the codes and scales of kernels/wasm/nn/cache.ts, in words of 32 bits, the
// first value low; int8 and int4 with a word beside each row (one head of one token), in a plane [head][token].
import { hasScales, type CacheKind } from "../../wasm/nn/cache.ts";
import { entry } from "../product.ts";
import { header, SIZE, type Bound, type Fields } from "./shader.ts";

export type CodedKind = Exclude<CacheKind, "float32">;

/** Values of a word. */
export const perWord = (kind: CacheKind): number => ({ float32: 1, float16: 2, int8: 4, int4: 8 })[kind];

/** Value `j` of word `w` (u32), less the zero point where there is one (`zero`). Its scale is not in it. */
export const cacheValue = (kind: CodedKind, w: string, j: string, zero: string): string =>
  ({
    float16: `select(unpack2x16float(${w}).x, unpack2x16float(${w}).y, ${j} == 1u)`,
    int8: `f32(extractBits(bitcast<i32>(${w}), 8u * (${j}), 8u))`,
    int4: `(f32(extractBits(${w}, 4u * (${j}), 4u)) - ${zero})`,
  })[kind];

/** Scale and zero point of a row's word. */
export const cacheScale = (kind: CodedKind, word: string): readonly [scale: string, zero: string] =>
  kind === "int4" ? [`bitcast<f32>(${word} & 0xfffffff0u)`, `f32(${word} & 15u)`] : [`bitcast<f32>(${word})`, "0.0"];

/** `first`: tokens before; `capacity`: rows of a head. */
export const APPEND_FIELDS: Fields = ["rows", "heads", "width", "first", "capacity", "xt", "xh", "ox"];

/** Rows of x into a cache, a workgroup each: tokens * heads. Bindings: params, x, y, words?. */
export function appendShader(kind: CodedKind): string {
  const scaled = hasScales(kind);
  const buffers: Bound[] = [
    ["x", "array<f32>"],
    ["y", "array<u32>", "read_write"],
  ];
  if (scaled) buffers.push(["words", "array<u32>", "read_write"]);
  const per = perWord(kind);
  const value = (j: number): string => `x[src + i * ${per}u + ${j}u]`;
  const near = (j: number): string => `select(round(${value(j)} / scale), 0.0, scale == 0.0)`;
  const code = (j: number): string =>
    kind === "int8"
      ? `((bitcast<u32>(i32(clamp(${near(j)}, -127.0, 127.0))) & 255u) << ${8 * j}u)`
      : `(u32(clamp(${near(j)} + zero, 0.0, 15.0)) << ${4 * j}u)`;
  const codes = Array.from({ length: per }, (_, j) => j);
  const bits = "bitcast<u32>(v) & 0x7fffffffu";
  // bits of magnitudes are in the order of the numbers, and a NaN is above infinity
  const scale =
    kind === "int8"
      ? "let scale = bitcast<f32>(high) / 127.0; let word = bitcast<u32>(scale);"
      : `let span = bitcast<f32>(high) * ${1 / 15} + bitcast<f32>(low) * ${1 / 15};
  let scale = bitcast<f32>((bitcast<u32>(span) + 8u) & 0xfffffff0u);
  let zero = select(min(round(bitcast<f32>(low) / scale), 15.0), 0.0, scale == 0.0); let word = bitcast<u32>(scale) | u32(zero);`;
  return `${header(APPEND_FIELDS, buffers)}${scaled ? "var<workgroup> most: atomic<u32>; var<workgroup> least: atomic<u32>;\n" : ""}${entry(SIZE)} {
  let row = block.x + block.y * blocks.x;
  if (row >= params.rows) { return; }
  let token = row / params.heads; let head = row % params.heads;
  let src = params.ox + token * params.xt + head * params.xh;
  let at = head * params.capacity + params.first + token;
  ${
    scaled
      ? `for (var i = id; i < params.width; i += ${SIZE}u) {
    let v = x[src + i];
    ${kind === "int8" ? `atomicMax(&most, ${bits});` : `if (bitcast<u32>(v) >> 31u == 0u) { atomicMax(&most, ${bits}); } else { atomicMax(&least, ${bits}); }`}
  }
  workgroupBarrier();
  let high = atomicLoad(&most); let low = atomicLoad(&least);
  ${scale}
  if (id == 0u) { words[at] = select(word, 0x7fc00000u, max(high, low) >= 0x7f800000u); }`
      : ""
  }
  for (var i = id; i < params.width / ${per}u; i += ${SIZE}u) {
    y[at * (params.width / ${per}u) + i] = ${kind === "float16" ? `pack2x16float(vec2f(${value(0)}, ${value(1)}))` : codes.map(code).join(" | ")};
  }
}
`;
}

export const appendName = (kind: CodedKind): string => `${kind}_cache__wgsl`;
