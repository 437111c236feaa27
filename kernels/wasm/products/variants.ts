// Kernels that families of products share: the lines of the registry (kernels/registry.ts) and the variants of each
// spec.
import type { KernelFamily, KernelVariant } from "../../variants.ts";
import { rowPack, rowPackModule } from "./rowpack.ts";

function* rowPackVariants(): Iterable<KernelVariant> {
  for (const bits of [1, 2, 4, 8] as const)
    for (const zeroPoint of [false, true])
      for (const half of [false, true]) {
        const terms = 2 * bits * 32 + (half ? 32 : 64);
        const spec = { bits, half, group: 32, bytes: terms + (zeroPoint ? 64 : 0), zeroPoint: zeroPoint ? terms : 0, shared: false };
        const name = `w${bits}b32${zeroPoint ? "zeroPoint" : ""}_row_pack${half ? "_half" : ""}__wasmsimd`;
        yield { name, relaxed: false, build: () => rowPackModule(spec) };
      }
}

export const productKernels: readonly KernelFamily[] = [
  {
    name: "row pack",
    computes: "dense rows of codes, scales and zero points -> records of products",
    file: "kernels/wasm/products/rowpack.ts",
    families: [rowPack],
    variants: rowPackVariants,
  },
];
