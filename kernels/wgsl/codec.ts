// Bulk decode and encode, WGSL: codes of `bits` bits lie densely in words, least significant bit first (as packCodes
// writes them), values as the bits of float32. What a code means comes from an expression (formats/core/expr.ts); no
// float is loaded or stored, so results are exact bit for bit, subnormal numbers and NaN included. For formats of at
// most 16 bits.
import { REFUSED, type Expr } from "../../formats/core/expr.ts";
import { exprFunction, exprHelpers, shaderTables } from "./function.ts";

/** Invocations of a workgroup. */
export const CODEC_SIZE = 64;

export interface CodecShader {
  readonly code: string;
  /** Contents of the binding `tables`; empty: there is no such binding. */
  readonly tables: Uint32Array;
}

const entry = `@compute @workgroup_size(${CODEC_SIZE})
fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) id: u32) {
  let i = (group.x + group.y * groups.x) * ${CODEC_SIZE}u + id;`;
const count = `struct Params { count: u32 }
@group(0) @binding(0) var<uniform> params: Params;`;

/** One value per invocation. Bindings: params { count } (uniform), codes, values (written), tables. */
export function decodeShader(bits: number, expr: Expr): CodecShader {
  const tables = shaderTables([expr]);
  const read =
    32 % bits === 0
      ? `let code = (codes[i / ${32 / bits}u] >> (i % ${32 / bits}u * ${bits}u)) & ${2 ** bits - 1}u;`
      : `// a code may lie in two words; bit positions are kept apart by words of 32 codes, so that they do not overflow
  let at = (i % 32u) * ${bits}u;
  let word = (i / 32u) * ${bits}u + at / 32u;
  var code = codes[word] >> (at % 32u);
  if (at % 32u > ${32 - bits}u) { code |= codes[word + 1u] << (32u - at % 32u); }
  code &= ${2 ** bits - 1}u;`;
  return {
    tables: tables.words,
    code: `${count}
@group(0) @binding(1) var<storage, read> codes: array<u32>;
@group(0) @binding(2) var<storage, read_write> values: array<u32>;
${exprHelpers([expr], 3)}
${exprFunction("decode", expr, tables)}
${entry}
  if (i >= params.count) { return; }
  ${read}
  values[i] = decode(code);
}
`,
  };
}

/**
 * One word of codes per invocation. Bindings: params { count } (uniform), values, codes (written), refused (one word;
 * the lowest index of a value that the policies refuse, 0xffffffff where there is none), tables.
 */
export function encodeShader(bits: number, expr: Expr): CodecShader {
  const tables = shaderTables([expr]);
  const body =
    32 % bits === 0
      ? `for (var j = 0u; j < ${32 / bits}u; j++) { word |= code_at(i * ${32 / bits}u + j) << (j * ${bits}u); }`
      : `// the first code that has bits in this word, and how many of its bits lie before it
  let chunk = i / ${bits}u;
  let bit = (i % ${bits}u) * 32u;
  var at = bit / ${bits}u;
  var shift = i32(at * ${bits}u) - i32(bit);
  while (shift < 32 && at < 32u) {
    let code = code_at(chunk * 32u + at);
    word |= select(code >> u32(max(-shift, 0)), code << u32(max(shift, 0)), shift >= 0);
    shift += ${bits};
    at++;
  }`;
  return {
    tables: tables.words,
    code: `${count}
@group(0) @binding(1) var<storage, read> values: array<u32>;
@group(0) @binding(2) var<storage, read_write> codes: array<u32>;
@group(0) @binding(3) var<storage, read_write> refused: atomic<u32>;
${exprHelpers([expr], 4)}
${exprFunction("encode", expr, tables)}
fn code_at(at: u32) -> u32 {
  if (at >= params.count) { return 0u; }
  let code = encode(values[at]);
  if (code == 0x${REFUSED.toString(16)}u) { atomicMin(&refused, at); return 0u; }
  return code;
}
${entry}
  if (i >= (params.count / 32u) * ${bits}u + ((params.count % 32u) * ${bits}u + 31u) / 32u) { return; }
  var word = 0u;
  ${body}
  codes[i] = word;
}
`,
  };
}

export const codecShaderName = (op: "decode" | "encode", format: string): string =>
  `u32_${format.replace(/[^A-Za-z0-9]/g, "")}_${op}__wgsl`;
