// The list of kernel families, room by room: what each computes, which file prints it, and the variants of its spec.
// Tests build and validate every variant; the sweeps of test/backends run them against the oracle by way of formats;
// bench/ has a file per family of the same stem.
import { convKernels } from "./wasm/conv/variants.ts";
import { dotKernels } from "./wasm/dot/variants.ts";
import { lookupKernels } from "./wasm/lookup/variants.ts";
import { floatKernels } from "./wasm/float/variants.ts";
import { convertKernels } from "./wasm/convert/variants.ts";
import { nnKernels } from "./wasm/nn/variants.ts";
import { productKernels } from "./wasm/products/variants.ts";
import { searchKernels } from "./wasm/search/variants.ts";
import { sparseKernels } from "./wasm/sparse/variants.ts";
import { losslessKernels } from "./wasm/lossless/variants.ts";
import type { KernelFamily } from "./variants.ts";

export type { KernelFamily, KernelVariant, ShaderFamily, ShaderVariant } from "./variants.ts";
export { shaderFamilies } from "./wgsl/variants.ts";

export const kernelFamilies: readonly KernelFamily[] = [
  ...dotKernels,
  ...productKernels,
  ...lookupKernels,
  ...floatKernels,
  ...convertKernels,
  ...nnKernels,
  ...convKernels,
  ...searchKernels,
  ...losslessKernels,
  ...sparseKernels,
];
