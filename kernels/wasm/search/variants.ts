// Kernels of vector search: the lines of the registry (kernels/registry.ts) and the variants of each spec.
import type { KernelFamily, KernelVariant } from "../../variants.ts";
import { pack, packModule } from "./pack.ts";
import { rank, rankModule } from "./rank.ts";
import type { ScanSpec } from "./layout.ts";
import { scan, scanModule } from "./scan.ts";

function* scanVariants(): Iterable<KernelVariant> {
  const variant = (spec: Omit<ScanSpec, "shared">): KernelVariant => {
    const floats = spec.bits === 32 ? "" : `w${spec.bits}m${spec.mantissaBits}`;
    const what =
      spec.kind === "float"
        ? floats
        : spec.kind === "dot"
          ? `w${spec.bits}${spec.table === null ? "" : "t"}${spec.doubled ? "doubled" : ""}x${spec.planes}`
          : "";
    const relaxed = spec.kind === "dot" && spec.style !== "simd";
    return {
      name: `${spec.kind}_scan_${what}_${spec.vectors}${spec.offset ? "_offset" : ""}${spec.flat ? "_flat" : ""}__${relaxed ? "wasmrelaxedsimd" : "wasmsimd"}_${spec.style}`,
      relaxed,
      build: () => scanModule({ ...spec, shared: false }),
    };
  };
  const table = Array.from({ length: 16 }, (_, i) => 2 * i);
  for (const offset of [false, true])
    for (const vectors of [1, 3, 24, 200]) {
      const base = { planes: 1, table: null, doubled: false, most: 0, offset, flat: false, vectors, stride: 16 * vectors } as const;
      yield variant({ ...base, kind: "float", style: "simd", bits: 32 });
      for (const [bits, mantissaBits] of [
        [8, 2],
        [8, 3],
        [16, 7],
        [16, 10],
      ] as const)
        yield variant({ ...base, kind: "float", style: "simd", bits, mantissaBits });
      yield variant({ ...base, kind: "hamming", style: "simd", bits: 1, doubled: true });
      if (!offset) yield variant({ ...base, kind: "hamming", style: "simd", bits: 1, doubled: true, flat: true });
      for (const style of ["dot", "madd16", "simd"] as const)
        for (const planes of [1, 2] as const) {
          for (const bits of [1, 2, 4, 8] as const)
            for (const doubled of [false, true])
              yield variant({ ...base, kind: "dot", style, planes, bits, doubled, most: bits === 8 ? 128 : 2 ** bits - 1 });
          yield variant({ ...base, kind: "dot", style, planes, bits: 4, table, most: 30 });
        }
    }
}

function* searchPackVariants(): Iterable<KernelVariant> {
  for (const bits of [1, 4, 8] as const)
    for (const flip of [0, 0x88])
      yield {
        name: `f32_row_pack_w${bits}${flip === 0 ? "" : "flipped"}__wasmsimd`,
        relaxed: false,
        build: () => packModule({ bits, max: 2 ** (bits - 1) - 1, flip, centred: false, shared: false }),
      };
}

function* centredVariants(): Iterable<KernelVariant> {
  yield {
    name: "f32_row_pack_w1centred__wasmsimd",
    relaxed: false,
    build: () => packModule({ bits: 1, max: 1, flip: 0, centred: true, shared: false }),
  };
}

function* searchRankVariants(): Iterable<KernelVariant> {
  yield { name: "rank_merge__wasmsimd", relaxed: false, build: () => rankModule({ rescore: null, shared: false }) };
  for (const offset of [false, true])
    for (const bits of [1, 2, 4, 8] as const)
      for (const vectors of [1, 24]) {
        const common = { style: "simd", planes: 2, table: null, doubled: false, offset, flat: false, shared: false } as const;
        const rescore: ScanSpec = { ...common, kind: "dot", bits, most: bits === 8 ? 128 : 2 ** bits - 1, vectors, stride: 16 * vectors };
        yield {
          name: `rank_w${bits}_${vectors}${offset ? "_offset" : ""}__wasmsimd`,
          relaxed: false,
          build: () => rankModule({ rescore, shared: false }),
        };
      }
}

export const searchKernels: readonly KernelFamily[] = [
  {
    name: "scan",
    computes: "packed vectors x queries -> the best scores, by dot products, differing bits or float32",
    file: "kernels/wasm/search/scan.ts",
    families: [scan],
    variants: scanVariants,
  },
  {
    name: "search-pack",
    computes: "float32 rows -> 8-bit or 4-bit integers with a scale a row, or signs",
    file: "kernels/wasm/search/pack.ts",
    families: [pack],
    variants: () => [...searchPackVariants(), ...centredVariants()],
  },
  {
    name: "search-rank",
    computes: "lists of the best of all threads -> one, scored again by packed rows x queries of 14 bits",
    file: "kernels/wasm/search/rank.ts",
    families: [rank],
    variants: searchRankVariants,
  },
];
