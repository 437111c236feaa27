// Kernels of sparse weights: the lines of the registry (kernels/registry.ts) and the variants of each spec.
import { TWO_FOUR_MOST, twoFour, twoFourModule, type TwoFourSpec } from "./two-four.ts";
import type { KernelFamily, KernelVariant } from "../../variants.ts";
import { sparsePack, sparsePackModule } from "./pack.ts";
import { isBytes, sparse, sparseModule, sparseTile, type SparseSpec } from "./sparse.ts";

/** The name of a product with sparse weights. */
export const sparseName = ({ type, block, relaxed }: SparseSpec): string =>
  `${{ float32: "f32", words: "s8_s32", "bytes-u": "s8_s32_u8", "bytes-s": "s8_s32_s8" }[type]}_sparse${block}_gemm_${sparseTile({ type, block })}__wasm${relaxed ? "relaxed" : "simd"}`;

const TWO_FOUR_ENDS = { simd: "simd", madd16: "relaxedsimd", "dot-u": "relaxedsimd_dot-u", "dot-s": "relaxedsimd_dot-s" } as const;

/** The name of a product with 2:4 weights. */
export const twoFourName = ({ style, mr, short }: TwoFourSpec, label = short ? "int4_b32" : "int4"): string =>
  `a8_${label}_2of4_${mr === 1 ? "gemv" : "gemm"}_${mr}x4__wasm${TWO_FOUR_ENDS[style]}`;

function* twoFourVariants(): Iterable<KernelVariant> {
  for (const style of ["simd", "madd16", "dot-u", "dot-s"] as const)
    for (let mr = 1; mr <= TWO_FOUR_MOST; mr++)
      for (const short of [true, false]) {
        const spec: TwoFourSpec = { style, mr, short, shared: false };
        yield { name: twoFourName(spec), relaxed: style !== "simd", build: () => twoFourModule(spec) };
      }
}

function* variants(): Iterable<KernelVariant> {
  for (const type of ["float32", "words", "bytes-u", "bytes-s"] as const)
    for (const block of type === "float32" ? (["1x1", "4x1"] as const) : (["1x1", "4x1", "1x4"] as const)) {
      for (const relaxed of type === "float32" ? [false, true] : [isBytes(type)]) {
        const spec: SparseSpec = { type, block, relaxed, shared: false };
        yield { name: sparseName(spec), relaxed, build: () => sparseModule(spec) };
      }
      const what = { float32: "f32", words: "s8_s16", "bytes-u": "s8_u8", "bytes-s": "s8" }[type];
      const build = (): Uint8Array<ArrayBuffer> => sparsePackModule({ type, block, shared: false });
      yield { name: `${what}_sparse${block}_pack__wasmsimd`, relaxed: false, build };
    }
}

export const sparseKernels: readonly KernelFamily[] = [
  {
    name: "sparse",
    computes:
      "activations x the weights that are not zero: float32, or int8 -> int32; rows alone, in blocks of four or in runs of four columns",
    file: "kernels/wasm/sparse/sparse.ts",
    families: [sparse, sparsePack],
    variants,
  },
  {
    name: "2:4",
    computes: "int8 activations x 4-bit weights of which two of four are stored: exact sums of blocks, float32 scales",
    file: "kernels/wasm/sparse/two-four.ts",
    families: [twoFour],
    variants: twoFourVariants,
  },
];
