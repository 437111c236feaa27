// Kernels of lossless weights: the lines of the registry (kernels/registry.ts) and the variants of each spec.
import type { KernelFamily } from "../../variants.ts";
import { decodeModule, losslessDecode } from "./decode.ts";

export const losslessKernels: readonly KernelFamily[] = [
  {
    name: "lossless decode",
    computes: "bfloat16 with Huffman-coded exponents -> rows, or records of float products",
    file: "kernels/wasm/lossless/decode.ts",
    families: [losslessDecode],
    *variants() {
      for (const output of ["rows", "records"] as const)
        yield { name: `bf16_huffman_${output}__wasmsimd`, relaxed: false, build: () => decodeModule({ output, shared: false }) };
    },
  },
];
