// What the registry (registry.ts) says of a kernel: a family, the file that prints it, and the variants of its spec.
// Each room lists its own (variants.ts there).
import type { Family } from "./wasm/engine/family.ts";

export interface KernelVariant {
  readonly name: string;
  /** Needs relaxed SIMD. */
  readonly relaxed: boolean;
  build(): Uint8Array<ArrayBuffer>;
}

export interface KernelFamily {
  readonly name: string;
  readonly computes: string;
  readonly file: string;
  /** What `kernel()` compiles (wasm/engine/family.ts). A test holds that every family there is has its line here. */
  readonly families: readonly Family<never>[];
  variants(): Iterable<KernelVariant>;
}

/** A kernel in WGSL. */
export interface ShaderVariant {
  readonly name: string;
  /** Device features that it needs beyond the defaults. */
  readonly features: readonly ("shader-f16" | "subgroups")[];
  build(): string;
}

export interface ShaderFamily {
  readonly name: string;
  readonly computes: string;
  readonly file: string;
  variants(): Iterable<ShaderVariant>;
}
