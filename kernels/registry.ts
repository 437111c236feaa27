// The list of kernel families: what each computes, which file prints it, and the variants of its spec. Tests build and validate every variant; the sweeps of
// test/backends run them against the oracle by way of formats; bench/ has a file per family of the same stem.
import { decodeExpr, encodeExpr, exprNodes } from "../formats/core/expr.ts";
import { allFormats } from "../formats/registry.ts";
import { codecName, floatName, gemmName, lutName } from "./names.ts";
import { activationModule, activations } from "./wasm/dot/activations.ts";
import type { Family } from "./wasm/engine/family.ts";
import { bitplane, bitplaneModule } from "./wasm/lookup/bitplane.ts";
import { bits, bitsModule, packsBits } from "./wasm/convert/bits.ts";
import { blocks, blocksModule } from "./wasm/convert/blocks.ts";
import { codec, codecModule } from "./wasm/convert/codec.ts";
import { planExpr } from "./wasm/convert/expr.ts";
import { float, floatModule, floatPack, floatPackModule, type FloatDecode, type FloatSpec } from "./wasm/float/float.ts";
import { float64, float64Module } from "./wasm/float/float64.ts";
import { hadamard, hadamardModule } from "./wasm/convert/hadamard.ts";
import { INT8_ROWS, int8, int8Module, int8Pack, int8PackModule } from "./wasm/dot/int8.ts";
import { lut, lutModule, lutTable, lutTablesModule, type LutSpec } from "./wasm/lookup/lut.ts";
import { gemm, gemmModule } from "./wasm/dot/gemm.ts";
import { paddedGroup, type GemmSpec } from "./wasm/dot/gemmspec.ts";
import { attention, attentionModule } from "./wasm/nn/attention.ts";
import { chain, chainModule, chainSpec } from "./wasm/nn/chain.ts";
import { gather, gatherModule } from "./wasm/nn/gather.ts";
import { norm, normModule } from "./wasm/nn/norm.ts";
import { rotary, rotaryModule } from "./wasm/nn/rotary.ts";
import { softmax, softmaxModule } from "./wasm/nn/softmax.ts";
import * as value from "./wasm/nn/values.ts";
import { layoutShader, quantizeShader } from "./wgsl/activations.ts";
import { codecShaderName, decodeShader, encodeShader } from "./wgsl/codec.ts";
import { gemmShader, GEMM_COLUMNS } from "./wgsl/gemm.ts";
import { gemvRows, gemvShader } from "./wgsl/gemv.ts";
import { exprFunction, shaderTables } from "./wgsl/function.ts";
import { hadamardShader, hadamardShaderName, type HadamardShader } from "./wgsl/hadamard.ts";
import { integerShader, integerShaderName, type IntegerSpec } from "./wgsl/integer.ts";
import { shaderName, type ProductSpec } from "./wgsl/product.ts";

export interface KernelVariant {
  readonly name: string;
  /** Needs relaxed SIMD. */
  readonly relaxed: boolean;
  build(): Uint8Array<ArrayBuffer>;
}

export interface KernelFamily {
  readonly name: string;
  readonly computes: string;
  readonly file: string;
  /** What `kernel()` compiles (wasm/engine/family.ts). A test holds that every family there is has its line here. */
  readonly families: readonly Family<never>[];
  variants(): Iterable<KernelVariant>;
}

/** A kernel in WGSL. */
export interface ShaderVariant {
  readonly name: string;
  /** Device features that it needs beyond the defaults. */
  readonly features: readonly ("shader-f16" | "subgroups")[];
  build(): string;
}

export interface ShaderFamily {
  readonly name: string;
  readonly computes: string;
  readonly file: string;
  variants(): Iterable<ShaderVariant>;
}

function* gemmVariants(): Iterable<KernelVariant> {
  const table = (max: number): { table: readonly number[]; max: number } => ({
    table: Array.from({ length: 16 }, (_, i) => (i * max) >> 4),
    max,
  });
  for (const style of ["simd", "madd16", "dot"] as const)
    for (const activationBits of [8, 16] as const)
      for (const [mr, nv] of [
        [1, 4],
        [2, 2],
        [4, 2],
      ] as const)
        for (const offset of ["none", "zeroPoint", "doubled", "add"] as const)
          for (let bits = 1; bits <= 8; bits++) {
            const spec: GemmSpec = {
              style,
              relaxed: style !== "simd",
              activationBits,
              bits,
              planes: [{ table: null, max: 2 ** bits - 1 }],
              radix: 256,
              group: paddedGroup(bits, 32),
              zeroPoint: offset === "zeroPoint",
              doubled: offset === "doubled",
              add: offset === "add",
              mr,
              nv,
              panel: false,
              shared: false,
            };
            const variant = (s: GemmSpec, weight: string): KernelVariant => ({
              name: gemmName(s, weight),
              relaxed: s.relaxed,
              build: () => gemmModule(s),
            });
            yield variant(spec, `w${bits}b32${offset === "none" ? "" : offset}`);
            if (mr > 1) yield variant({ ...spec, panel: true }, `w${bits}b32${offset === "none" ? "" : offset}`);
            // a long group takes turns of a loop
            if (offset === "none") yield variant({ ...spec, group: 256 }, `w${bits}b256`);
            if (bits === 4 && offset !== "doubled") {
              yield variant({ ...spec, planes: [table(63)] }, `t4b32${offset === "none" ? "" : offset}`);
              const two = { ...spec, planes: [table(255), table(255)] };
              yield variant(two, `tt4b32${offset === "none" ? "" : offset}`);
              if (mr > 1) yield variant({ ...two, panel: true }, `tt4b32${offset === "none" ? "" : offset}`);
            }
          }
}

/** Ways to decode that elements of a wide range take. */
const WIDE: ReadonlySet<FloatDecode["kind"]> = new Set(["table4", "table8", "shift", "half"]);

function* floatVariants(): Iterable<KernelVariant> {
  const decodes: readonly (readonly [string, FloatDecode, number])[] = [
    ...Array.from({ length: 8 }, (_, i) => [`w${i + 1}b32`, { kind: "lattice", table: null, shift: 3 }, i + 1] as const),
    ["t4b32", { kind: "lattice", table: Array.from({ length: 16 }, (_, i) => i), shift: 3 }, 4],
    ["f4b32", { kind: "table4", values: Array.from({ length: 16 }, (_, i) => i / 7) }, 4],
    ["f8b32", { kind: "table8" }, 8],
    ["e4m3b32", { kind: "shift", mantissaBits: 3, exponent: 120 }, 8],
    ["e3m2b32", { kind: "shift", mantissaBits: 2, exponent: 124 }, 6],
    ["bf16b32", { kind: "half", mantissaBits: 7 }, 16],
    ["f16b32", { kind: "half", mantissaBits: 10 }, 16],
    ["f32", { kind: "float" }, 32],
  ];
  for (const relaxed of [false, true])
    for (const [weight, decode, bits] of decodes)
      for (const [mr, nv] of [
        [1, 4],
        [2, 4],
        [6, 2],
      ] as const)
        for (const offset of ["none", "zeroPoint", "add"] as const) {
          if (offset !== "none" && decode.kind === "float") continue;
          if (offset === "zeroPoint" && decode.kind !== "lattice") continue;
          const spec: FloatSpec = {
            decode,
            relaxed,
            bits,
            group: bits > 8 ? 32 : paddedGroup(bits, 32),
            scale: decode.kind !== "float",
            scaleFirst: false,
            zeroPoint: offset === "zeroPoint",
            add: offset === "add",
            mr,
            nv,
            shared: false,
          };
          const named = `${weight}${offset === "none" ? "" : offset}`;
          yield { name: floatName(spec, named), relaxed, build: () => floatModule(spec) };
          const early = { ...spec, scaleFirst: true };
          if (mr === 1 && WIDE.has(decode.kind)) yield { name: floatName(early, named), relaxed, build: () => floatModule(early) };
        }
  for (const mr of [2, 3, 4, 5, 6])
    yield { name: `f32_pack_${mr}__wasmsimd`, relaxed: false, build: () => floatPackModule({ mr, shared: false }) };
}

function* int8Variants(): Iterable<KernelVariant> {
  for (const style of ["simd", "dot"] as const)
    for (const unsigned of [false, true])
      for (let mr = 1; mr <= INT8_ROWS[style]; mr++) {
        const spec = { style, unsigned, mr, shared: false };
        const name = `${unsigned ? "u" : "a"}8_s32_int8_gemm_${mr}x8__${style === "dot" ? "wasmrelaxedsimd" : "wasmsimd"}_${style}`;
        yield { name, relaxed: style === "dot", build: () => int8Module({ ...spec, unroll: 4 }) };
        if (style === "simd") yield { name: `${name}_quad`, relaxed: false, build: () => int8Module({ ...spec, unroll: 1 }) };
        yield { name: `${unsigned ? "u" : "a"}8_pack_${mr}__wasmsimd_${style}`, relaxed: false, build: () => int8PackModule(spec) };
      }
}

function* hadamardVariants(): Iterable<KernelVariant> {
  for (let n = 4; n <= 2 ** 20; n *= 2)
    yield { name: `f32_hadamard${n}__wasmsimd`, relaxed: false, build: () => hadamardModule({ n, shared: false }) };
}

function* float64Variants(): Iterable<KernelVariant> {
  yield { name: "f64_gemm_4x4__wasmsimd", relaxed: false, build: () => float64Module({ shared: false }) };
}

function* bitplaneVariants(): Iterable<KernelVariant> {
  for (let activationBits = 1; activationBits <= 8; activationBits++)
    for (let weightBits = 1; weightBits <= 8; weightBits++)
      yield {
        name: `b${activationBits}_s32_w${weightBits}_bitplane_1x2__wasmsimd`,
        relaxed: false,
        build: () => bitplaneModule({ activationBits, weightBits, shared: false }),
      };
}

function* lutVariants(): Iterable<KernelVariant> {
  for (const relaxed of [false, true])
    for (const [planes, equal] of [[1, false], [2, false], [3, false], [4, false], [2, true]] as const)
      for (const group of [24, 32, 256])
        for (const offset of ["none", "zeroPoint", "doubled", "add"] as const) {
          if (equal && offset === "doubled") continue;
          const flags = { doubled: offset === "doubled", zeroPoint: offset === "zeroPoint", add: offset === "add" };
          const spec: LutSpec = { relaxed, planes, equal, group, shift: 1, ...flags, shared: false };
          yield {
            name: lutName(spec, `w${planes}b${group}${offset === "none" ? "" : offset}`),
            relaxed,
            build: () => lutModule(spec),
          };
          if (!relaxed && offset === "none")
            yield { name: `a8_tables_w${planes}${equal ? "t" : ""}b${group}__wasmsimd`, relaxed, build: () => lutTablesModule(spec) };
        }
} // prettier-ignore

export const kernelFamilies: readonly KernelFamily[] = [
  {
    name: "gemm",
    computes: "int8 or int16 activations x fields of 1..8 bits, block scales -> float32",
    file: "kernels/wasm/dot/gemm.ts",
    families: [gemm],
    variants: gemmVariants,
  },
  {
    name: "activations",
    computes: "float32 activations -> int8 or int16 codes, scales and corrections, in records for gemm",
    file: "kernels/wasm/dot/activations.ts",
    families: [activations],
    variants: activationVariants,
  },
  {
    name: "lut",
    computes: "int8 activations x 1..4 bit planes or ternary masks by looked-up sums, block scales -> float32",
    file: "kernels/wasm/lookup/lut.ts",
    families: [lut, lutTable],
    variants: lutVariants,
  },
  {
    name: "int8",
    computes: "int8 or uint8 x int8 -> int32",
    file: "kernels/wasm/dot/int8.ts",
    families: [int8, int8Pack],
    variants: int8Variants,
  },
  {
    name: "bitplane",
    computes: "words of 1..8 bits x words of 1..8 bits -> int32, by planes",
    file: "kernels/wasm/lookup/bitplane.ts",
    families: [bitplane],
    variants: bitplaneVariants,
  },
  {
    name: "hadamard",
    computes: "Walsh-Hadamard transform of float32 rows",
    file: "kernels/wasm/convert/hadamard.ts",
    families: [hadamard],
    variants: hadamardVariants,
  },
  {
    name: "float64",
    computes: "float64 A^T B added to C, for the algebra of the quantizers",
    file: "kernels/wasm/float/float64.ts",
    families: [float64],
    variants: float64Variants,
  },
  {
    name: "float",
    computes: "float32 activations x decoded weights -> float32",
    file: "kernels/wasm/float/float.ts",
    families: [float, floatPack],
    variants: floatVariants,
  },
  {
    name: "codec",
    computes: "codes -> float32 and back, any format of at most 16 bits",
    file: "kernels/wasm/convert/codec.ts",
    families: [codec],
    variants: codecVariants,
  },
  {
    name: "bits",
    computes: "codes to and from dense bits, any width to 15",
    file: "kernels/wasm/convert/bits.ts",
    families: [bits],
    variants: bitsVariants,
  },
  {
    name: "blocks",
    computes: "statistics and scaling of blocks of float32",
    file: "kernels/wasm/convert/blocks.ts",
    families: [blocks],
    variants: blocksVariants,
  },
  {
    name: "norm",
    computes: "RMS and layer normalisation of float32 rows, with skip, bias and the sum kept",
    file: "kernels/wasm/nn/norm.ts",
    families: [norm],
    variants: normVariants,
  },
  {
    name: "softmax",
    computes: "softmax of float32 rows",
    file: "kernels/wasm/nn/softmax.ts",
    families: [softmax],
    variants: softmaxVariants,
  },
  {
    name: "chain",
    computes: "element-wise expressions over float32 rows, one kernel for a chain of any length",
    file: "kernels/wasm/nn/chain.ts",
    families: [chain],
    variants: chainVariants,
  },
  {
    name: "attention",
    computes: "attention of grouped heads over keys and values in place, float32, online softmax",
    file: "kernels/wasm/nn/attention.ts",
    families: [attention],
    variants: attentionVariants,
  },
  {
    name: "rotary",
    computes: "rotary position embedding of float32 heads, half-split or interleaved, into a cache or in place",
    file: "kernels/wasm/nn/rotary.ts",
    families: [rotary],
    variants: rotaryVariants,
  },
  {
    name: "gather",
    computes: "rows of tables of 4-bit or 8-bit codes in blocks -> float32",
    file: "kernels/wasm/nn/gather.ts",
    families: [gather],
    variants: gatherVariants,
  },
];

function* normVariants(): Iterable<KernelVariant> {
  const flags = ["skip", "addend", "scale", "shift"] as const;
  for (const kind of ["rms", "layer"] as const)
    for (let set = 0; set < 2 ** flags.length; set++) {
      const has = (i: number): boolean => (set & (1 << i)) !== 0;
      const spec = { kind, skip: has(0), addend: has(1), scale: has(2), shift: has(3), shared: false };
      const name = [kind, ...flags.filter((_, i) => has(i))].join("_");
      yield { name: `f32_${name}__wasmsimd`, relaxed: false, build: () => normModule(spec) };
    }
}

function* attentionVariants(): Iterable<KernelVariant> {
  for (const head of [4, 8, 20, 64, 80, 128])
    for (const relaxed of [false, true])
      for (const softcap of [false, true])
        for (const mask of [false, true])
          yield {
            name: `f32_attention${head}${softcap ? "_softcap" : ""}${mask ? "_mask" : ""}__${relaxed ? "wasmrelaxedsimd" : "wasmsimd"}`,
            relaxed,
            build: () => attentionModule({ head, softcap, mask, relaxed, shared: false }),
          };
}

function* rotaryVariants(): Iterable<KernelVariant> {
  for (const interleaved of [false, true])
    yield {
      name: `f32_rotary_${interleaved ? "interleaved" : "half"}__wasmsimd`,
      relaxed: false,
      build: () => rotaryModule({ interleaved, shared: false }),
    };
}

function* gatherVariants(): Iterable<KernelVariant> {
  for (const bits of [4, 8] as const)
    for (const signed of [false, true])
      for (const zeroPoints of [false, true])
        yield {
          name: `${signed ? "s" : "u"}${bits}_f32_gather${zeroPoints ? "_zp" : ""}__wasmsimd`,
          relaxed: false,
          build: () => gatherModule({ bits, signed, zeroPoints, shared: false }),
        };
}

function* softmaxVariants(): Iterable<KernelVariant> {
  yield { name: "f32_softmax__wasmsimd", relaxed: false, build: () => softmaxModule({ shared: false }) };
}

/** Every operation by itself, and the chains that models have. */
function* chainVariants(): Iterable<KernelVariant> {
  const [x, y] = [value.operand(0), value.operand(1)];
  const positive = value.binary("gt", x, value.constant(0));
  const logical = new Set(["and", "or", "not", "number"]);
  const whole = (v: value.Value): value.Value =>
    ["eq", "ne", "lt", "le", "gt", "ge", "and", "or", "not"].includes(v.op) ? value.unary("number", v) : v;
  const graphs: (readonly [string, value.Value])[] = [
    ...value.UNARY.map((op) => [op, whole(value.unary(op, logical.has(op) ? positive : x))] as const),
    ...value.BINARY.map((op) => [op, whole(logical.has(op) ? value.binary(op, positive, positive) : value.binary(op, x, y))] as const),
    ["select", value.select(positive, x, y)],
    ["silu_gate", value.binary("mul", value.silu(x), y)],
    ["gelu", value.gelu(x)],
    ["gelu_tanh", value.geluTanh(x)],
    ["softcap", value.softcap(x, 30)],
  ];
  for (const [name, graph] of graphs)
    for (const second of ["vector", "scalar"] as const)
      yield {
        name: `f32_chain_${name}_${second}__wasmsimd`,
        relaxed: false,
        build: () => chainModule(chainSpec([graph], ["vector", second], false)),
      };
}

function* activationVariants(): Iterable<KernelVariant> {
  for (const style of ["simd", "madd16", "dot"] as const)
    for (const activationBits of [8, 16] as const)
      for (const totals of [false, true])
        for (const inOrder of style === "simd" ? [false, true] : [false])
          for (const mr of [1, 2, 3, 4, 6])
            yield {
              name: `f32_a${activationBits}_quantize_${mr}__wasmsimd_${style}${totals ? "_totals" : ""}${inOrder ? "_ordered" : ""}`,
              relaxed: false,
              build: () => activationModule({ style, inOrder, activationBits, mr, totals, shared: false }),
            };
}

function* bitsVariants(): Iterable<KernelVariant> {
  for (let bits = 1; bits <= 16; bits++)
    if (packsBits(bits)) yield { name: `u${bits}_pack__wasmsimd`, relaxed: false, build: () => bitsModule({ bits, shared: false }) };
}

function* blocksVariants(): Iterable<KernelVariant> {
  yield { name: "f32_blocks__wasmsimd", relaxed: false, build: () => blocksModule({ shared: false }) };
}

/** Every scalar format of at most 16 bits, both ways. */
function* codecVariants(): Iterable<KernelVariant> {
  for (const format of allFormats) {
    if (format.kind === "block" || format.kind === "opaque" || format.bits > 16) continue;
    const codeBits = format.bits <= 8 ? 8 : 16;
    for (const direction of ["decode", "encode"] as const)
      for (const relaxed of [false, true])
        yield {
          name: codecName({ direction, relaxed }, format.name),
          relaxed,
          build: () => {
            const expr = direction === "decode" ? decodeExpr(format)! : encodeExpr(format, { overflow: "saturate" })!;
            return codecModule({ direction, codeBits, relaxed, shared: false }, planExpr(expr, direction === "decode"));
          },
        };
  }
}

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

/** Every scalar format of at most 16 bits, both ways: the expressions are theirs, the rest of a shader follows from the width. */
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
  for (const bits of [8, 16] as const)
    for (const unit of [0, 8, 16, 32]) {
      const spec = { bits, output: unit === 0 ? "values" : "codes", unit } as const;
      yield { name: `a${bits}_quantize_${spec.output}${unit === 0 ? "" : unit}__wgsl`, features: [], build: () => quantizeShader(spec) };
    }
  for (const from of ["float32", "float16"] as const)
    for (const to of ["float32", "float16"] as const)
      yield { name: `${from}_layout_${to}__wgsl`, features: [], build: () => layoutShader({ from, to }) };
}

/** The same for WebGPU. Within the default limits of WebGPU: 256 invocations, 16 KiB of workgroup memory, 8 storage buffers. */
export const shaderFamilies: readonly ShaderFamily[] = [
  {
    name: "products",
    computes: "float32, float16, int8 or int16 activations x fields of 1..8 bits, 16 bits or float32, block scales -> float32",
    file: "kernels/wgsl/gemv.ts, kernels/wgsl/gemm.ts",
    variants: productShaders,
  },
  {
    name: "activations",
    computes: "activations to int8 or int16 codes, or into the layout of products",
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
];
