// Kernels of integer products: the lines of the registry (kernels/registry.ts) and the variants of each spec.
import { gemmName } from "../../names.ts";
import { activationModule, activations } from "./activations.ts";
import { INT8_ROWS, int8, int8Module, int8Pack, int8PackModule } from "./int8.ts";
import { gemm, gemmModule } from "./gemm.ts";
import { paddedGroup, type GemmSpec } from "./gemmspec.ts";
import type { KernelFamily, KernelVariant } from "../../variants.ts";

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
        [6, 2],
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
            if (bits === 4 && (offset === "none" || offset === "zeroPoint")) {
              yield variant({ ...spec, half: true }, `w4b32${offset === "none" ? "" : offset}half`);
              yield variant({ ...spec, half: true, group: 256 }, `w4b256${offset === "none" ? "" : offset}half`);
            }
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

function* activationVariants(): Iterable<KernelVariant> {
  for (const style of ["simd", "madd16", "dot"] as const)
    for (const codeBits of [4, 6, 8, 16] as const)
      for (const totals of [false, true])
        for (const inOrder of style === "simd" ? [false, true] : [false])
          for (const mr of [1, 2, 3, 4, 6])
            for (const mixed of codeBits < 8 ? [false, true] : [false]) {
              const spec = {
                style,
                inOrder,
                activationBits: codeBits === 16 ? 16 : 8,
                codeBits,
                mr,
                totals,
                mixed,
                shared: false,
              } as const;
              const words = [totals && "totals", inOrder && "ordered", mixed && "mixed"].filter(Boolean);
              yield {
                name: [`f32_a${codeBits}_quantize_${mr}__wasmsimd_${style}`, ...words].join("_"),
                relaxed: false,
                build: () => activationModule(spec),
              };
            }
}

function* int8Variants(): Iterable<KernelVariant> {
  for (const style of ["simd", "dot"] as const)
    for (const unsigned of [false, true])
      for (let mr = 1; mr <= INT8_ROWS[style]; mr++) {
        const spec = { style, unsigned, mr, shared: false };
        const name = `${unsigned ? "u" : "a"}8_s32_int8_gemm_${mr}x8__${style === "dot" ? "wasmrelaxedsimd" : "wasmsimd"}_${style}`;
        yield { name, relaxed: style === "dot", build: () => int8Module({ ...spec, unroll: 8 }) };
        if (style === "dot")
          for (const bias of [false, true])
            for (const bounded of [false, true])
              yield {
                name: [name, "scaled", bias && "bias", bounded && "bounded"].filter(Boolean).join("_"),
                relaxed: true,
                build: () => int8Module({ ...spec, unroll: 8, scaled: { bias, bounded } }),
              };
        if (style === "simd") yield { name: `${name}_quad`, relaxed: false, build: () => int8Module({ ...spec, unroll: 1 }) };
        yield { name: `${unsigned ? "u" : "a"}8_pack_${mr}__wasmsimd_${style}`, relaxed: false, build: () => int8PackModule(spec) };
      }
}

export const dotKernels: readonly KernelFamily[] = [
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
    name: "int8",
    computes: "int8 or uint8 x int8 -> int32, or float32 by scales of columns",
    file: "kernels/wasm/dot/int8.ts",
    families: [int8, int8Pack],
    variants: int8Variants,
  },
];
