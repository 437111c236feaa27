// What the product shaders share: their spec, bindings, decoding of quads (see weight.ts) and the epilogue. y[m, n] =
// x[m, k] * w[n, k]^T, float32 sums.
import { weightWord } from "../names.ts";
import { CHUNK, planesOf, type GpuDecode, type Operand, type WeightPlan } from "./weight.ts";

/** What follows a product, per output column. `gelu` is x * Phi(x) by erf; `geluTanh` its usual approximation. */
export type Epilogue = "relu" | "gelu" | "geluTanh" | "silu";

/**
 * Activations as the shader reads them: float32, float16 (two to a word), or the codes of kernels/wgsl/activations.ts.
 */
export type Operands = "float32" | "float16" | "int8" | "int16";

export interface ProductSpec {
  readonly x: Operands;
  readonly bits: number;
  readonly decode: GpuDecode;
  readonly operand: Operand;
  /** Elements per scale within a chunk: 8 or 16; 32: a scale covers one chunk or more (`params.per`). */
  readonly group: number;
  readonly scale: boolean;
  /** A zero per group, one for all (`params.zero`), or none. */
  readonly zero: "group" | "constant" | "none";
  readonly add: boolean;
  readonly doubled: boolean;
  readonly bias: boolean;
  readonly epilogue: Epilogue | null;
  /** Sums over lanes by subgroup operations. */
  readonly subgroups: boolean;
}

export function productSpec(
  plan: WeightPlan,
  x: Operands,
  options: { readonly bias: boolean; readonly epilogue: Epilogue | null; readonly subgroups: boolean },
): ProductSpec {
  const { bits, decode, operand, scale, add, doubled } = plan;
  const zero = plan.zeroPoint ? "group" : plan.shift === 0 ? "none" : "constant";
  return {
    x,
    bits,
    decode,
    operand,
    group: plan.group === 8 || plan.group === 16 ? plan.group : CHUNK,
    scale,
    zero,
    add,
    doubled,
    ...options,
  };
}

export const isInteger = (spec: Pick<ProductSpec, "x">): boolean => spec.x === "int8" || spec.x === "int16";

/**
 * Words of `Params`, in order; u32 but the zero. `span` and `group` are those of the weight, `per` the chunks that
 * share a scale, `part` the elements that share an activation scale. Sizes are no constants of a shader, so that
 * matrices share pipelines.
 */
export const PARAMS = ["m", "rows", "chunks", "groups", "columns", "column", "k", "span", "group", "per", "part", "zero"] as const;

export const params = `struct Params { ${PARAMS.map((name) => `${name}: ${name === "zero" ? "f32" : "u32"}`).join(", ")} }`;

/** Declares bindings of group 0 in order. */
export function bindings(
  list: readonly (readonly [name: string, type: string, space: "uniform" | "storage, read" | "storage, read_write"])[],
): string {
  return list.map(([name, type, space], i) => `@group(0) @binding(${i}) var<${space}> ${name}: ${type};`).join("\n");
}

export const entry = (size: number, more = ""): string =>
  `@compute @workgroup_size(${size}) fn main(@builtin(workgroup_id) block: vec3u, @builtin(num_workgroups) blocks: vec3u, @builtin(local_invocation_index) id: u32${more})`;

const hasTable = (spec: ProductSpec): boolean => (isInteger(spec) ? spec.operand === "table" : spec.decode.kind === "table");
const tableSize = (spec: ProductSpec): number => (isInteger(spec) ? 16 : spec.decode.kind === "table" ? spec.decode.size : 0);

/**
 * Struct, bindings, the table in workgroup memory, `decode` or `operand`, and `finish`. `w` is the element type of the
 * weight's words.
 */
export function productHeader(spec: ProductSpec, w: string): string {
  const { x } = spec;
  const list: [string, string, "uniform" | "storage, read" | "storage, read_write"][] = [["params", "Params", "uniform"]];
  if (isInteger(spec)) list.push(["x", "array<vec4u>", "storage, read"], ["facts", "array<vec2u>", "storage, read"]);
  else list.push(["x", x === "float16" ? "array<vec2u>" : "array<vec4f>", "storage, read"]);
  list.push(["w", `array<${w}>`, "storage, read"]);
  if (spec.scale) list.push(["scales", "array<f32>", "storage, read"]);
  if (parts(spec) > 0) list.push(["offsets", "array<f32>", "storage, read"]);
  if (hasTable(spec)) list.push(["codebook", "array<u32>", "storage, read"]);
  if (spec.bias) list.push(["bias", "array<f32>", "storage, read"]);
  list.push(["y", "array<f32>", "storage, read_write"]);
  return `${spec.subgroups ? "enable subgroups;\n" : ""}${params}
${bindings(list)}
${hasTable(spec) ? `var<workgroup> table: array<u32, ${tableSize(spec)}>;\n` : ""}${decodeFunctions(spec)}${finishFunction(spec)}`;
}

/** Floats per group in `offsets`. */
export const parts = (spec: ProductSpec): number => (spec.zero === "group" ? 1 : 0) + (spec.add ? 1 : 0);

/** Loads the table; a barrier must follow. */
export function loadTable(spec: ProductSpec, size: number): string {
  if (!hasTable(spec)) return "";
  return `for (var i = id; i < ${tableSize(spec)}u; i += ${size}u) { table[i] = codebook[i]; }`;
}

/** Table loaded and visible, as a statement of its own. */
export const tableBarrier = (spec: ProductSpec, size: number): string =>
  hasTable(spec) ? `${loadTable(spec, size)} workgroupBarrier();` : "";

function decodeFunctions(spec: ProductSpec): string {
  if (isInteger(spec)) {
    const body = {
      field: "return q;",
      flipped: "return q ^ 0x80808080u;",
      table: "let c = unpack4xU8(q); return table[c.x] | (table[c.y] << 8u) | (table[c.z] << 16u) | (table[c.w] << 24u);",
    }[spec.operand];
    return `fn operand(q: u32) -> u32 { ${body} }\n`;
  }
  const { decode } = spec;
  switch (decode.kind) {
    case "float":
      return "";
    case "integer":
      return "fn decode(c: vec4u) -> vec4f { return vec4f(c); }\n";
    case "table":
      return "fn decode(c: vec4u) -> vec4f { return bitcast<vec4f>(vec4u(table[c.x], table[c.y], table[c.z], table[c.w])); }\n";
    case "expr":
      return `${decode.text}fn decode(c: vec4u) -> vec4f { return bitcast<vec4f>(vec4u(${["x", "y", "z", "w"].map((i) => `decode_bits(c.${i})`).join(", ")})); }\n`;
  }
}

function finishFunction({ bias, epilogue }: ProductSpec): string {
  const lines = [`  var v = value${bias ? " + bias[column]" : ""};`];
  if (epilogue === "relu") lines.push("  v = max(v, 0.0);");
  if (epilogue === "silu") lines.push("  v = v / (1.0 + exp(min(-v, 88.0)));");
  if (epilogue === "geluTanh") lines.push("  v = 0.5 * v * (1.0 + tanh(clamp(0.7978845608 * (v + 0.044715 * v * v * v), -15.0, 15.0)));");
  // erf by Abramowitz and Stegun 7.1.26, |error| < 1.5e-7
  if (epilogue === "gelu")
    lines.push(
      "  let z = min(abs(v) * 0.70710678118, 9.0);",
      "  let t = 1.0 / (1.0 + 0.3275911 * z);",
      "  let tail = ((((1.061405429 * t - 1.453152027) * t + 1.421413741) * t - 0.284496736) * t + 0.254829592) * t * exp(-z * z);",
      // Phi(v): the tail itself on the negative side, without cancellation
      "  v = v * select(0.5 * tail, 1.0 - 0.5 * tail, v >= 0.0);",
    );
  return `fn finish(value: f32, column: u32) -> f32 {\n${lines.join("\n")}\n  return v;\n}\n`;
}

/**
 * The quad q (0..7, known when the shader is printed) of a chunk whose words are given by `word`: u32 of four fields,
 * or for wide fields vec4u / vec4f.
 */
export function staticQuad(spec: ProductSpec, q: number, word: (index: number) => string): string {
  const { bits } = spec;
  if (bits === 32) return `bitcast<vec4f>(vec4u(${[0, 1, 2, 3].map((i) => word(4 * q + i)).join(", ")}))`;
  if (bits === 16) {
    const [a, b] = [word(2 * q), word(2 * q + 1)];
    return `decode(vec4u(${a} & 0xffffu, ${a} >> 16u, ${b} & 0xffffu, ${b} >> 16u))`;
  }
  const pieces = planesOf(bits).map(({ width, below, first }) => {
    const place = q * width;
    let text = word(first + (place >> 3));
    if ((place & 7) !== 0) text = `(${text} >> ${place & 7}u)`;
    if (width !== 8) text = `(${text} & ${mask(width)})`;
    return below === 0 ? text : `(${text} << ${below}u)`;
  });
  const quad = pieces.join(" | ");
  return isInteger(spec) ? `operand(${quad})` : `decode(unpack4xU8(${quad}))`;
}

const mask = (width: number): string => `0x${((2 ** width - 1) * 0x01010101).toString(16).padStart(8, "0")}u`;

/** A function `quad(base, q)` over `w: array<u32>`: quad q of the chunk whose first word is `base`. */
export function dynamicQuad(spec: ProductSpec): string {
  const { bits } = spec;
  if (bits === 32)
    return "fn quad(base: u32, q: u32) -> vec4f { let at = base + 4u * q; return bitcast<vec4f>(vec4u(w[at], w[at + 1u], w[at + 2u], w[at + 3u])); }\n";
  if (bits === 16)
    return `fn quad(base: u32, q: u32) -> vec4f {
  let a = w[base + 2u * q]; let b = w[base + 2u * q + 1u];
  return decode(vec4u(a & 0xffffu, a >> 16u, b & 0xffffu, b >> 16u));
}\n`;
  const pieces = planesOf(bits).map(({ width, below, first }) => {
    if (width === 8) return `w[base + q]`;
    const text = `((w[base + ${first}u + ((q * ${width}u) >> 3u)] >> ((q * ${width}u) & 7u)) & ${mask(width)})`;
    return below === 0 ? text : `(${text} << ${below}u)`;
  });
  const quad = pieces.join(" | ");
  return isInteger(spec)
    ? `fn quad(base: u32, q: u32) -> u32 { return operand(${quad}); }\n`
    : `fn quad(base: u32, q: u32) -> vec4f { return decode(unpack4xU8(${quad})); }\n`;
}

/** Index of the first scale of a chunk `c` in row `row`, and how many quads each scale covers within it. */
export function chunkGroups(spec: ProductSpec): { readonly first: string; readonly units: number } {
  const { group } = spec;
  if (group === CHUNK) return { first: "row * params.groups + c / params.per", units: 1 };
  return { first: `row * params.groups + c * ${CHUNK / group}u`, units: CHUNK / group };
}

/** Scale, zero and addend of the group at index `at`. */
export function groupTerms(
  spec: ProductSpec,
  at: string,
): { readonly scale: string; readonly zero: string | null; readonly add: string | null } {
  const n = parts(spec);
  const zero = spec.zero === "none" ? null : spec.zero === "group" ? `offsets[(${at}) * ${n}u]` : "params.zero";
  return {
    scale: spec.scale ? `scales[${at}]` : "1.0",
    zero: isInteger(spec) && zero !== null ? `i32(${zero})` : zero,
    add: spec.add ? `offsets[(${at}) * ${n}u + ${n - 1}u]` : null,
  };
}

/** One word of a kernel's name for how it decodes. */
export function pathWord(spec: ProductSpec): string {
  if (isInteger(spec)) return spec.operand === "table" ? "dp4a_table" : "dp4a";
  return spec.decode.kind === "integer"
    ? "lattice"
    : spec.decode.kind === "expr"
      ? "fields"
      : spec.decode.kind === "table"
        ? "table"
        : "panel";
}

const ACTIVATIONS = { float32: "f32", float16: "f16", int4: "a4", int6: "a6", int8: "a8", int16: "a16" };

/**
 * A product's name: `op` and its tile, rows of x by rows of w. `x`: the activations asked for, where they are quantized
 * but multiplied as floats.
 */
export function shaderName(
  spec: ProductSpec,
  weight: string,
  op: "gemv" | "gemm",
  tile: readonly [number, number],
  x: keyof typeof ACTIVATIONS = spec.x,
): string {
  const more = `${spec.bias ? "_bias" : ""}${spec.epilogue === null ? "" : `_${spec.epilogue}`}`;
  return `${ACTIVATIONS[x]}_${weightWord(weight)}_${op}_${tile[0]}x${tile[1]}__wgsl${spec.subgroups ? "subgroups" : ""}_${pathWord(spec)}${more}`;
}
