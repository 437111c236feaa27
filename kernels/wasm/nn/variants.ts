// Kernels of operators: the lines of the registry (kernels/registry.ts) and the variants of each spec.
import { attention, attentionModule } from "./attention.ts";
import { attentionTiles, attentionTilesModule } from "./attention-tiles.ts";
import { append, appendModule, type CacheKind } from "./cache.ts";
import { codes, codesModule, type CodesSpec } from "./codes.ts";
import { chain, chainModule, chainSpec } from "./chain.ts";
import { conv, convModule } from "./conv.ts";
import { copy, copyModule, type CopySpec } from "./copy.ts";
import { gather, gatherModule } from "./gather.ts";
import { matmul, matmulModule } from "./matmul.ts";
import { moments, momentsModule } from "./moments.ts";
import { norm, normModule } from "./norm.ts";
import { reduce, reduceModule, REDUCTIONS } from "./reduce.ts";
import { rotary, rotaryModule } from "./rotary.ts";
import { softmax, softmaxModule } from "./softmax.ts";
import { slidingWindow, windowModule } from "./window.ts";
import * as value from "./values.ts";
import type { KernelFamily, KernelVariant } from "../../variants.ts";

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

function* softmaxVariants(): Iterable<KernelVariant> {
  yield { name: "f32_softmax__wasmsimd", relaxed: false, build: () => softmaxModule({ shared: false }) };
}

function* codesVariants(): Iterable<KernelVariant> {
  yield { name: "s32_s64_moments__wasmsimd", relaxed: false, build: () => momentsModule({ shared: false }) };
  const base: CodesSpec = { value: "x", sum: false, columns: false, addend: false, result: "int32", shared: false };
  const specs: CodesSpec[] = [
    ...(["int32", "uint8", "table8", "table32"] as const).map((result) => ({ ...base, result })),
    ...(["int32", "uint8"] as const).flatMap((result) => [
      { ...base, sum: true, result },
      { ...base, value: "product" as const, result },
      { ...base, value: "biased" as const, columns: true, result },
      { ...base, columns: true, result },
      { ...base, value: "normalized" as const, columns: true, addend: true, result },
    ]),
    { ...base, value: "distance", result: "summed8" },
  ];
  for (const spec of specs) {
    const words = [spec.value, ...(["sum", "columns", "addend"] as const).filter((flag) => spec[flag]), spec.result];
    yield { name: `s32_codes_${words.join("_")}__wasmsimd`, relaxed: false, build: () => codesModule(spec) };
  }
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
    ["gelu_tanh", value.geluTanh(x)],
    ["softcap", value.softcap(x, 30)],
  ];
  for (const [name, graph] of graphs)
    for (const second of ["vector", "scalar"] as const)
      for (const relaxed of [false, true]) {
        const spec = chainSpec([graph], ["vector", second], { shared: false, relaxed });
        if (spec.relaxed !== relaxed) continue;
        yield {
          name: `f32_chain_${name}_${second}__${relaxed ? "wasmrelaxedsimd" : "wasmsimd"}`,
          relaxed,
          build: () => chainModule(spec),
        };
      }
}

const KINDS = ["float32", "float16", "int8", "int4"] as const;
const KEY_KINDS: readonly CacheKind[] = [...KINDS, "int4_halves"];

function* attentionVariants(): Iterable<KernelVariant> {
  yield* cacheVariants();
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

function* attentionTilesVariants(): Iterable<KernelVariant> {
  for (const head of [20, 32, 128])
    for (const relaxed of [false, true])
      for (const [softcap, mask, k, v] of [
        [false, false, "float32", "float32"],
        [false, true, "float32", "float32"],
        [true, true, "float16", "float16"],
      ] as const)
        yield {
          name: `f32_attention_tiles${head}_${k}${softcap ? "_softcap" : ""}${mask ? "_mask" : ""}__${relaxed ? "wasmrelaxedsimd" : "wasmsimd"}`,
          relaxed,
          build: () => attentionTilesModule({ head, softcap, mask, k, v, relaxed, shared: false }),
        };
}

/** Every kind of keys with every kind of values. */
function* cacheVariants(): Iterable<KernelVariant> {
  for (const k of KEY_KINDS)
    for (const v of KINDS)
      for (const relaxed of [false, true]) {
        if (k === "float32" && v === "float32") continue;
        const spec = { head: 64, softcap: false, mask: false, k, v, relaxed, shared: false };
        yield {
          name: `f32_attention64_${k}_${v}__${relaxed ? "wasmrelaxedsimd" : "wasmsimd"}`,
          relaxed,
          build: () => attentionModule(spec),
        };
      }
}

function* appendVariants(): Iterable<KernelVariant> {
  for (const kind of KEY_KINDS)
    if (kind !== "float32")
      yield { name: `f32_append_${kind}__wasmsimd`, relaxed: false, build: () => appendModule({ kind, shared: false }) };
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

function* matmulVariants(): Iterable<KernelVariant> {
  for (const relaxed of [false, true])
    for (const a of ["rows", "columns"] as const)
      for (const b of ["rows", "columns"] as const)
        for (const rows of a === "rows" ? (["few", "many"] as const) : (["many"] as const))
          yield {
            name: `f32_matmul_${rows}_${a}_${b}__${relaxed ? "wasmrelaxedsimd" : "wasmsimd"}`,
            relaxed,
            build: () => matmulModule({ a, b, rows, relaxed, shared: false }),
          };
}

function* copyVariants(): Iterable<KernelVariant> {
  const specs: CopySpec[] = [
    { kind: "runs", bytes: 1, shared: false },
    { kind: "planes", bytes: 4, shared: false },
    ...([1, 2, 4, 8] as const).map((bytes): CopySpec => ({ kind: "elements", bytes, shared: false })),
  ];
  for (const spec of specs) yield { name: `w${8 * spec.bytes}_copy_${spec.kind}__wasmsimd`, relaxed: false, build: () => copyModule(spec) };
}

function* reduceVariants(): Iterable<KernelVariant> {
  for (const op of REDUCTIONS)
    for (const side of ["rows", "columns"] as const)
      for (const last of op.startsWith("arg") ? [false, true] : [false])
        yield {
          name: `f32_reduce_${op}${last ? "_last" : ""}_${side}__wasmsimd`,
          relaxed: false,
          build: () => reduceModule({ op, side, last, shared: false }),
        };
}

function* convVariants(): Iterable<KernelVariant> {
  for (const relaxed of [false, true])
    yield { name: `f32_conv__${relaxed ? "wasmrelaxedsimd" : "wasmsimd"}`, relaxed, build: () => convModule({ relaxed, shared: false }) };
}

function* windowVariants(): Iterable<KernelVariant> {
  for (const op of ["conv", "max", "average"] as const)
    for (const step of [1, 2, "any"] as const)
      for (const relaxed of op === "conv" ? [false, true] : [false])
        yield {
          name: `f32_window_${op}_${step}__${relaxed ? "wasmrelaxedsimd" : "wasmsimd"}`,
          relaxed,
          build: () => windowModule({ op, step, relaxed, shared: false }),
        };
}

export const nnKernels: readonly KernelFamily[] = [
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
    computes: "attention of grouped heads over keys and values in place: float32, float16, int8, int4; online softmax",
    file: "kernels/wasm/nn/attention.ts",
    families: [attention],
    variants: attentionVariants,
  },
  {
    name: "attention tiles",
    computes: "the same for many rows over keys and values of floats, as products of tiles",
    file: "kernels/wasm/nn/attention-tiles.ts",
    families: [attentionTiles],
    variants: attentionTilesVariants,
  },
  {
    name: "rotary",
    computes: "rotary position embedding of float32 heads, half-split or interleaved, into a cache or in place",
    file: "kernels/wasm/nn/rotary.ts",
    families: [rotary],
    variants: rotaryVariants,
  },
  {
    name: "codes",
    computes: "integer codes at other scales: sums, products, normalisations, tables (integer-only models)",
    file: "kernels/wasm/nn/codes.ts",
    families: [codes, moments],
    variants: codesVariants,
  },
  {
    name: "gather",
    computes: "rows of tables of 4-bit or 8-bit codes in blocks -> float32",
    file: "kernels/wasm/nn/gather.ts",
    families: [gather],
    variants: gatherVariants,
  },
  {
    name: "matmul",
    computes: "float32 products of batches of strided matrices",
    file: "kernels/wasm/nn/matmul.ts",
    families: [matmul],
    variants: matmulVariants,
  },
  {
    name: "copy",
    computes: "copies between strided tensors: transposes, slices, joins, expansion",
    file: "kernels/wasm/nn/copy.ts",
    families: [copy],
    variants: copyVariants,
  },
  {
    name: "reduce",
    computes: "sums, means, norms, extremes, products and indices of float32 [outer, axis, inner] over the middle",
    file: "kernels/wasm/nn/reduce.ts",
    families: [reduce],
    variants: reduceVariants,
  },
  {
    name: "conv",
    computes: "convolution of padded float32 images, in groups, as tiles of products",
    file: "kernels/wasm/nn/conv.ts",
    families: [conv],
    variants: convVariants,
  },
  {
    name: "window",
    computes: "depthwise convolution, max and average pooling of padded float32 planes",
    file: "kernels/wasm/nn/window.ts",
    families: [slidingWindow],
    variants: windowVariants,
  },
  {
    name: "append",
    computes: "rows of keys or values -> a cache of float16, int8 or int4",
    file: "kernels/wasm/nn/cache.ts",
    families: [append],
    variants: appendVariants,
  },
];
