// Kernels of products by lookup and by planes: the lines of the registry (kernels/registry.ts) and the variants of each
// spec.
import { lutName } from "../../names.ts";
import { bitplane, bitplaneModule } from "./bitplane.ts";
import { lut, lutModule, lutTable, lutTablesModule, type LutSpec } from "./lut.ts";
import type { KernelFamily, KernelVariant } from "../../variants.ts";

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

function* bitplaneVariants(): Iterable<KernelVariant> {
  for (let activationBits = 1; activationBits <= 8; activationBits++)
    for (let weightBits = 1; weightBits <= 8; weightBits++)
      yield {
        name: `b${activationBits}_s32_w${weightBits}_bitplane_1x2__wasmsimd`,
        relaxed: false,
        build: () => bitplaneModule({ activationBits, weightBits, shared: false }),
      };
}

export const lookupKernels: readonly KernelFamily[] = [
  {
    name: "lut",
    computes: "int8 activations x 1..4 bit planes or ternary masks by looked-up sums, block scales -> float32",
    file: "kernels/wasm/lookup/lut.ts",
    families: [lut, lutTable],
    variants: lutVariants,
  },
  {
    name: "bitplane",
    computes: "words of 1..8 bits x words of 1..8 bits -> int32, by planes",
    file: "kernels/wasm/lookup/bitplane.ts",
    families: [bitplane],
    variants: bitplaneVariants,
  },
];
