// Kernels of float products: the lines of the registry (kernels/registry.ts) and the variants of each spec.
import { floatName } from "../../names.ts";
import { float, floatModule, floatPack, floatPackModule, type FloatDecode, type FloatSpec } from "./float.ts";
import { float64, float64Module } from "./float64.ts";
import { paddedGroup } from "../dot/gemmspec.ts";
import type { KernelFamily, KernelVariant } from "../../variants.ts";

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

function* float64Variants(): Iterable<KernelVariant> {
  yield { name: "f64_gemm_4x4__wasmsimd", relaxed: false, build: () => float64Module({ shared: false }) };
}

export const floatKernels: readonly KernelFamily[] = [
  {
    name: "float",
    computes: "float32 activations x decoded weights -> float32",
    file: "kernels/wasm/float/float.ts",
    families: [float, floatPack],
    variants: floatVariants,
  },
  {
    name: "float64",
    computes: "float64 A^T B added to C, for the algebra of the quantizers",
    file: "kernels/wasm/float/float64.ts",
    families: [float64],
    variants: float64Variants,
  },
];
