// Shaders in WGSL: the lines of the registry (kernels/registry.ts) and the variants of each spec.
import { decodeExpr, encodeExpr, exprNodes } from "../../formats/core/expr.ts";
import { allFormats } from "../../formats/registry.ts";
import { layoutShader, quantizeShader } from "./activations.ts";
import { codecShaderName, decodeShader, encodeShader } from "./codec.ts";
import { gemmShader, GEMM_COLUMNS } from "./gemm.ts";
import { gemvRows, gemvShader } from "./gemv.ts";
import { exprFunction, shaderTables } from "./function.ts";
import { hadamardShader, hadamardShaderName, type HadamardShader } from "./hadamard.ts";
import { integerShader, integerShaderName, type IntegerSpec } from "./integer.ts";
import { operatorShaders } from "./nn/variants.ts";
import { shaderName, type ProductSpec } from "./product.ts";
import type { ShaderFamily, ShaderVariant } from "../variants.ts";

function* hadamardShaders(): Iterable<ShaderVariant> {
  const specs: HadamardShader[] = [
    { part: "tile", length: 1024 },
    { part: "tile", length: 4096 },
    { part: "far", levels: 1 },
    { part: "far", levels: 2 },
    { part: "far", levels: 3 },
  ];
  for (const spec of specs) yield { name: hadamardShaderName(spec), features: [], build: () => hadamardShader(spec) };
}

/**
 * Every scalar format of at most 16 bits, both ways: the expressions are theirs, the rest of a shader follows from the
 * width.
 */
function* codecShaders(): Iterable<ShaderVariant> {
  for (const format of allFormats) {
    if (format.kind === "block" || format.kind === "opaque" || format.bits > 16) continue;
    const { bits } = format;
    yield {
      name: codecShaderName("decode", format.name),
      features: [],
      build: () => decodeShader(bits, decodeExpr(format)!).code,
    };
    yield {
      name: codecShaderName("encode", format.name),
      features: [],
      build: () => encodeShader(bits, encodeExpr(format, { overflow: "saturate" })!).code,
    };
  }
}

function* integerShaders(): Iterable<ShaderVariant> {
  const specs = [1, 4].flatMap((rows): IntegerSpec[] => [
    { kind: "bytes", rows },
    { kind: "planes", single: true, rows },
    { kind: "planes", single: false, rows },
  ]);
  for (const spec of specs) yield { name: integerShaderName(spec), features: [], build: () => integerShader(spec) };
}

/** Weights as the product shaders tell them apart, with a word for each. */
function* shaderWeights(): Iterable<readonly [string, Omit<ProductSpec, "x" | "subgroups" | "bias" | "epilogue">]> {
  const plain = { operand: "field", group: 32, scale: true, zero: "none", add: false, doubled: false } as const;
  const integer = { kind: "integer" } as const;
  for (let bits = 1; bits <= 8; bits++)
    for (const zero of ["none", "constant", "group"] as const) yield [`w${bits}${zero}`, { ...plain, bits, decode: integer, zero }];
  for (const group of [8, 16]) yield [`w4b${group}`, { ...plain, bits: 4, decode: integer, group, zero: "constant" }];
  yield ["w4add", { ...plain, bits: 4, decode: integer, add: true }];
  yield ["w4groupadd", { ...plain, bits: 4, decode: integer, zero: "group", add: true }];
  for (const bits of [2, 4, 6, 8]) yield [`t${bits}`, { ...plain, bits, decode: { kind: "table", size: 2 ** bits } }];
  const texts = new Set<string>();
  for (const format of allFormats) {
    if (format.kind === "block" || format.kind === "opaque" || format.bits > 16) continue;
    const expr = decodeExpr(format)!;
    const text = exprFunction("decode_bits", expr, shaderTables([]));
    const bits = format.bits <= 8 ? format.bits : 16;
    // integers are converted, tables looked up: what is left is fields, one line for each way to move them
    if (exprNodes(expr).some((e) => e.table !== undefined || e.op === "toFloat") || texts.has(text)) continue;
    texts.add(text);
    yield [format.name, { ...plain, bits, decode: { kind: "expr", text } }];
  }
  yield ["float", { ...plain, bits: 32, decode: { kind: "float" }, scale: false }];
}

function* productShaders(): Iterable<ShaderVariant> {
  const done = { bias: false, epilogue: null, subgroups: false } as const;
  const gemv = (weight: string, spec: ProductSpec, m: 1 | 2 | 4, size = 64): ShaderVariant => {
    const n = gemvRows(spec, m);
    return {
      name: `${shaderName(spec, weight, "gemv", [m, n])}${size === 64 ? "" : `_${size}`}`,
      features: spec.subgroups ? ["subgroups"] : [],
      build: () => gemvShader({ ...spec, m, n, size }),
    };
  };
  const gemm = (weight: string, spec: ProductSpec, m: 16 | 64): ShaderVariant => ({
    name: shaderName(spec, weight, "gemm", [m, GEMM_COLUMNS]),
    features: [],
    build: () => gemmShader({ ...spec, m }),
  });
  for (const [weight, w] of shaderWeights()) {
    const spec: ProductSpec = { ...w, ...done, x: "float32" };
    yield gemv(weight, spec, 1);
    yield gemv(weight, spec, 4);
    yield gemm(weight, spec, 16);
    yield gemm(weight, spec, 64);
    if (w.decode.kind !== "integer") continue;
    for (const x of ["int8", "int16"] as const) {
      yield gemv(weight, { ...spec, x }, 1);
      yield gemv(weight, { ...spec, x }, 4);
      yield gemm(weight, { ...spec, x }, 64);
    }
  }
  const base: ProductSpec = {
    bits: 4,
    decode: { kind: "integer" },
    operand: "field",
    group: 32,
    scale: true,
    zero: "constant",
    add: false,
    doubled: false,
    ...done,
    x: "float32",
  };
  for (const x of ["float32", "float16", "int8", "int16"] as const)
    for (const m of [1, 2, 4] as const)
      for (const size of [32, 64]) {
        yield gemv("w4", { ...base, x, subgroups: true }, m, size);
        yield gemv("w4", { ...base, x }, m, size);
      }
  for (const x of ["int8", "int16"] as const)
    for (const [weight, more] of [
      ["w8flipped", { bits: 8, operand: "flipped" }],
      ["w4table", { operand: "table" }],
      ["w4doubled", { doubled: true }],
    ] as const) {
      yield gemv(weight, { ...base, ...more, x }, 1);
      yield gemm(weight, { ...base, ...more, x }, 16);
    }
  for (const epilogue of ["relu", "gelu", "geluTanh", "silu"] as const) {
    yield gemv("w4end", { ...base, bias: true, epilogue }, 1);
    yield gemm("w4end", { ...base, bias: true, epilogue }, 64);
  }
  yield gemm("w4half", { ...base, x: "float16" }, 16);
}

function* activationShaders(): Iterable<ShaderVariant> {
  for (const bits of [4, 6, 8, 16] as const)
    for (const unit of [0, 8, 16, 32]) {
      const spec = { bits, output: unit === 0 ? "values" : "codes", unit } as const;
      yield { name: `a${bits}_quantize_${spec.output}${unit === 0 ? "" : unit}__wgsl`, features: [], build: () => quantizeShader(spec) };
    }
  for (const from of ["float32", "float16"] as const)
    for (const to of ["float32", "float16"] as const)
      yield { name: `${from}_layout_${to}__wgsl`, features: [], build: () => layoutShader({ from, to }) };
}

/**
 * The same for WebGPU. Within the default limits of WebGPU: 256 invocations, 16 KiB of workgroup memory, 8 storage
 * buffers.
 */
export const shaderFamilies: readonly ShaderFamily[] = [
  {
    name: "products",
    computes: "float32, float16, int8 or int16 activations x fields of 1..8 bits, 16 bits or float32, block scales -> float32",
    file: "kernels/wgsl/gemv.ts, kernels/wgsl/gemm.ts",
    variants: productShaders,
  },
  {
    name: "activations",
    computes: "activations to codes of 4, 6, 8 or 16 bits, or into the layout of products",
    file: "kernels/wgsl/activations.ts",
    variants: activationShaders,
  },
  {
    name: "codec",
    computes: "codes -> float32 bits and back, any format of at most 16 bits",
    file: "kernels/wgsl/codec.ts",
    variants: codecShaders,
  },
  {
    name: "integer",
    computes: "words of 1..8 bits by planes, or bytes by dot products -> int32",
    file: "kernels/wgsl/integer.ts",
    variants: integerShaders,
  },
  { name: "hadamard", computes: "Walsh-Hadamard transform of float32 rows", file: "kernels/wgsl/hadamard.ts", variants: hadamardShaders },
  {
    name: "operators",
    computes: "attention, norms, softmax, chains of element-wise operators, reductions, copies, float32 products",
    file: "kernels/wgsl/nn/",
    variants: operatorShaders,
  },
];
