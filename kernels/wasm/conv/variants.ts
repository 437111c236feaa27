// Kernels of integer convolutions and of codes: the lines of the registry (kernels/registry.ts) and the variants of
// each spec.
import type { KernelFamily, KernelVariant } from "../../variants.ts";
import { INT8_ROWS } from "../dot/int8.ts";
import { decodeModule, decodeRows, encodeModule, encodeRows, range, rangeModule } from "./codes.ts";
import { codeColumns, columnsModule } from "./columns.ts";
import { integerConv, integerConvModule } from "./conv.ts";
import { depthwiseModule, integerDepthwise } from "./depthwise.ts";
import { codeRows, finishSums, rowsModule, sumsModule } from "./matrix.ts";

const FINISHES = ["int32", "float32", "int8", "uint8"] as const;
const letter = (type: string): string => (type.startsWith("uint") ? `u${type.slice(4)}` : type === "float32" ? "f32" : `s${type.slice(3)}`);
const biases = (to: (typeof FINISHES)[number]): readonly boolean[] => (to === "float32" ? [false, true] : [false]);

function* convVariants(): Iterable<KernelVariant> {
  for (const style of ["words", "bytes-u", "bytes-s"] as const)
    for (const unsigned of [false, true])
      for (const to of FINISHES)
        for (const bias of biases(to))
          for (const unroll of style === "words" ? ([1, 4] as const) : ([4] as const)) {
            const relaxed = style !== "words";
            const parts = [bias ? "_bias" : "", unroll === 1 ? "_unit" : "", style === "bytes-s" ? "_signed" : ""].join("");
            yield {
              name: `${unsigned ? "u8" : "s8"}_${letter(to)}_conv${parts}__${relaxed ? "wasmrelaxedsimd" : "wasmsimd"}`,
              relaxed,
              build: () => integerConvModule({ style, unsigned, to, bias, unroll, shared: false }),
            };
          }
}

function* depthwiseVariants(): Iterable<KernelVariant> {
  for (const style of ["words", "bytes-u", "bytes-s"] as const)
    for (const unsigned of [false, true])
      for (const to of FINISHES)
        for (const bias of biases(to))
          for (const step of [1, 2] as const)
            for (const unroll of [...(style === "words" ? [] : [1 as const]), 2, 3, "3x3"] as const) {
              const end = style === "words" ? "__wasmsimd" : `_${style}__wasmrelaxedsimd`;
              yield {
                name: `${unsigned ? "u8" : "s8"}_${letter(to)}_depthwise_${step}_${unroll}${bias ? "_bias" : ""}${end}`,
                relaxed: style !== "words",
                build: () => depthwiseModule({ style, unsigned, to, bias, step, unroll, shared: false }),
              };
            }
}

function* codeVariants(): Iterable<KernelVariant> {
  yield { name: "f32_range__wasmsimd", relaxed: false, build: () => rangeModule({ shared: false }) };
  for (const to of ["int8", "uint8", "int16", "uint16"] as const)
    yield { name: `f32_${letter(to)}_encode__wasmsimd`, relaxed: false, build: () => encodeModule({ to, shared: false }) };
  for (const from of ["int8", "uint8", "int16", "uint16", "int32"] as const)
    yield { name: `${letter(from)}_f32_decode__wasmsimd`, relaxed: false, build: () => decodeModule({ from, shared: false }) };
}

function* matrixVariants(): Iterable<KernelVariant> {
  yield { name: "u8_code_columns__wasmsimd", relaxed: false, build: () => columnsModule({ shared: false }) };
  for (const style of ["simd", "dot"] as const)
    for (const unsigned of [false, true])
      for (let mr = 1; mr <= INT8_ROWS[style]; mr++)
        yield {
          name: `${unsigned ? "u8" : "s8"}_code_rows_${mr}__wasmsimd_${style}`,
          relaxed: false,
          build: () => rowsModule({ style, unsigned, mr, shared: false }),
        };
  for (const to of FINISHES)
    for (const bias of biases(to))
      for (const zeros of [false, true])
        yield {
          name: `s32_${letter(to)}_finish${bias ? "_bias" : ""}${zeros ? "_zp" : ""}__wasmsimd`,
          relaxed: false,
          build: () => sumsModule({ to, bias, zeros, shared: false }),
        };
}

export const convKernels: readonly KernelFamily[] = [
  {
    name: "integer conv",
    computes: "convolution of padded images of int8 or uint8, in groups -> int32, float32 or codes",
    file: "kernels/wasm/conv/conv.ts",
    families: [integerConv],
    variants: convVariants,
  },
  {
    name: "integer depthwise",
    computes: "convolution of int8 or uint8 images one channel at a time -> int32, float32 or codes",
    file: "kernels/wasm/conv/depthwise.ts",
    families: [integerDepthwise],
    variants: depthwiseVariants,
  },
  {
    name: "codes",
    computes: "range of float32; float32 rows -> codes of 8 or 16 bits, and back",
    file: "kernels/wasm/conv/codes.ts",
    families: [range, encodeRows, decodeRows],
    variants: codeVariants,
  },
  {
    name: "matrix",
    computes: "rows and columns of codes packed for int8 products, and their sums -> int32, float32 or codes",
    file: "kernels/wasm/conv/matrix.ts",
    families: [codeRows, codeColumns, finishSums],
    variants: matrixVariants,
  },
];
