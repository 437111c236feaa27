// Keys and values in fewer bits on a device: the codes and scales of kernels/wasm/nn/cache.ts, in words of 32 bits, the
// first value low; int8 and int4 with a word beside each row (one head of one token), in a plane [head][token].
import { cacheRowBytes, HALF_SCALE, hasScales, type CacheKind } from "../../wasm/nn/cache.ts";
import { entry } from "../product.ts";
import { header, SIZE, type Bound, type Fields } from "./shader.ts";

export type CodedKind = Exclude<CacheKind, "float32">;

/** Values of a word. */
export const perWord = (kind: CacheKind): number => 4 / cacheRowBytes(kind, 1);

/** Value `j` of word `w` (u32), less the zero point where there is one (`zero`). Its scale is not in it. */
export const cacheValue = (kind: CodedKind, w: string, j: string, zero: string): string => {
  if (kind === "float16") return `select(unpack2x16float(${w}).x, unpack2x16float(${w}).y, ${j} == 1u)`;
  if (kind === "int8") return `f32(extractBits(bitcast<i32>(${w}), 8u * (${j}), 8u))`;
  return `(f32(extractBits(${w}, 4u * (${j}), 4u)) - ${zero})`;
};

type Scale = readonly [scale: string, zero: string];

/** Scale and zero point of a row's word; of a half's where the kind has them. */
export function cacheScale(kind: CodedKind, word: string, half: 0 | 1 = 0): Scale {
  if (kind === "int4") return [`bitcast<f32>(${word} & 0xfffffff0u)`, `f32(${word} & 15u)`];
  if (kind !== "int4_halves") return [`bitcast<f32>(${word})`, "0.0"];
  return [`bitcast<f32>((extractBits(${word}, ${16 * half + 4}u, 12u)) << 19u)`, `f32(extractBits(${word}, ${16 * half}u, 4u))`];
}

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
  const parts = kind === "int4_halves" ? [0, 1] : [0];
  const part = kind === "int4_halves" ? "select(0, 1, i >= split)" : "0";
  // bits of magnitudes are in the order of the numbers, and a NaN is above infinity
  const scale = (p: number): string => {
    const found = `let high${p} = atomicLoad(&most[${p}]); let low${p} = atomicLoad(&least[${p}]); let none${p} = max(high${p}, low${p}) >= 0x7f800000u;`;
    if (kind === "int8")
      return `${found} let scale${p} = bitcast<f32>(high${p}) / 127.0; let zero${p} = 0.0; let word${p} = select(bitcast<u32>(scale${p}), 0x7fc00000u, none${p});`;
    const span = `bitcast<u32>(bitcast<f32>(high${p}) * ${1 / 15} + bitcast<f32>(low${p}) * ${1 / 15})`;
    const word = kind === "int4" ? `bitcast<u32>(scale${p})` : `(bitcast<u32>(scale${p}) >> 15u)`;
    return `${found} let scale${p} = bitcast<f32>(${kind === "int4" ? `(${span} + 8u) & 0xfffffff0u` : `${span} & ${HALF_SCALE}u`});
  let zero${p} = select(min(round(bitcast<f32>(low${p}) / scale${p}), 15.0), 0.0, scale${p} == 0.0);
  let word${p} = select(${word} | u32(zero${p}), ${kind === "int4" ? "0x7fc00000u" : "0xff80u"}, none${p});`;
  };
  return `${header(APPEND_FIELDS, buffers)}${scaled ? `var<workgroup> most: array<atomic<u32>, ${parts.length}>; var<workgroup> least: array<atomic<u32>, ${parts.length}>;\n` : ""}${entry(SIZE)} {
  let row = block.x + block.y * blocks.x;
  if (row >= params.rows) { return; }
  let token = row / params.heads; let head = row % params.heads;
  let src = params.ox + token * params.xt + head * params.xh;
  let at = head * params.capacity + params.first + token;
  ${kind === "int4_halves" ? "let split = (params.width + 31u) / 32u * 16u;" : ""}
  ${
    scaled
      ? `for (var i = id; i < params.width; i += ${SIZE}u) {
    let v = x[src + i];
    ${kind === "int8" ? `atomicMax(&most[0], ${bits});` : `if (bitcast<u32>(v) >> 31u == 0u) { atomicMax(&most[${part}], ${bits}); } else { atomicMax(&least[${part}], ${bits}); }`}
  }
  workgroupBarrier();
  ${parts.map(scale).join("\n  ")}
  if (id == 0u) { words[at] = ${parts.map((p) => `(word${p} << ${16 * p}u)`).join(" | ")}; }`
      : ""
  }
  for (var i = id; i < params.width / ${per}u; i += ${SIZE}u) {
    ${scaled ? ["scale", "zero"].map((name) => `let ${name} = ${parts.length === 1 ? `${name}0` : `select(${name}0, ${name}1, i * ${per}u >= split)`};`).join(" ") : ""}
    y[at * (params.width / ${per}u) + i] = ${kind === "float16" ? `pack2x16float(vec2f(${value(0)}, ${value(1)}))` : codes.map(code).join(" | ")};
  }
}
`;
}

export const appendName = (kind: CodedKind): string => `${kind}_cache__wgsl`;
