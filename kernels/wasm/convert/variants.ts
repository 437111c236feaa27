// Kernels of conversions: the lines of the registry (kernels/registry.ts) and the variants of each spec.
import { decodeExpr, encodeExpr } from "../../../formats/core/expr.ts";
import { allFormats } from "../../../formats/registry.ts";
import { codecName, weightWord } from "../../names.ts";
import { bits, bitsModule, packsBits } from "./bits.ts";
import { blocks, blocksModule } from "./blocks.ts";
import { codec, codecModule } from "./codec.ts";
import { planExpr } from "./expr.ts";
import { search, searchModule } from "./search.ts";
import { hadamard, hadamardModule } from "./hadamard.ts";
import type { KernelFamily, KernelVariant } from "../../variants.ts";

function* hadamardVariants(): Iterable<KernelVariant> {
  for (let n = 4; n <= 2 ** 20; n *= 2)
    yield { name: `f32_hadamard${n}__wasmsimd`, relaxed: false, build: () => hadamardModule({ n, shared: false }) };
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

function* bitsVariants(): Iterable<KernelVariant> {
  for (let bits = 1; bits <= 16; bits++)
    if (packsBits(bits)) yield { name: `u${bits}_pack__wasmsimd`, relaxed: false, build: () => bitsModule({ bits, shared: false }) };
}

function* blocksVariants(): Iterable<KernelVariant> {
  yield { name: "f32_blocks__wasmsimd", relaxed: false, build: () => blocksModule({ shared: false }) };
}

/** Every opaque format whose encoder searches scales that are not of a table. */
function* searchVariants(): Iterable<KernelVariant> {
  for (const format of allFormats) {
    const spec = format.kind === "opaque" ? format.search?.spec : undefined;
    if (spec === undefined || (spec.kind === "signed" && spec.levels !== undefined)) continue;
    for (const weighted of [false, true])
      yield {
        name: `f32_${weightWord(format.name)}_search${weighted ? "_weighted" : ""}__wasmsimd`,
        relaxed: false,
        build: () => searchModule({ search: spec, weighted, shared: false }),
      };
  }
}

export const convertKernels: readonly KernelFamily[] = [
  {
    name: "hadamard",
    computes: "Walsh-Hadamard transform of float32 rows",
    file: "kernels/wasm/convert/hadamard.ts",
    families: [hadamard],
    variants: hadamardVariants,
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
    name: "search of scales",
    computes: "scales of blocks whose encoder searches them, runs in the lanes",
    file: "kernels/wasm/convert/search.ts",
    families: [search],
    variants: searchVariants,
  },
];
