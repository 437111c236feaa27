// The names of kernels, printed from their specs: `<act>[_<acc>]_<weight>_<op>_<MR>x<NR>__<arch>[_<path>]`, for example
// a8_int4b32_gemm_4x8__wasmrelaxedsimd_lattice. A name is a test title, a bench row and what `explain()` says; the
// cache key is the whole spec.
import type { FloatSpec } from "./wasm/float/float.ts";
import type { GemmSpec } from "./wasm/dot/gemmspec.ts";
import type { LutSpec } from "./wasm/lookup/lut.ts";

/** A format's or definition's name as one word of a kernel name. */
export const weightWord = (name: string): string => name.replace(/[^A-Za-z0-9]/g, "");

const arch = (spec: { readonly relaxed: boolean }): string => (spec.relaxed ? "wasmrelaxedsimd" : "wasmsimd");

export function gemmName(spec: GemmSpec, weight: string): string {
  const path = spec.planes.length === 2 ? "planes" : spec.planes[0].table === null ? "lattice" : "swizzle";
  const op = spec.mr === 1 ? "gemv" : "gemm";
  return `a${spec.activationBits}_${weightWord(weight)}_${op}_${spec.mr}x${4 * spec.nv}__${arch(spec)}_${path}_${spec.style}${spec.panel ? "_panel" : ""}`;
}

export function floatName(spec: FloatSpec, weight: string): string {
  const op = spec.mr === 1 ? "gemv" : "gemm";
  const path = spec.decode.kind === "float" ? "" : `_${spec.decode.kind}`;
  return `f32_${weightWord(weight)}_${op}_${spec.mr}x${4 * spec.nv}__${arch(spec)}${path}${spec.scaleFirst ? "_scaled" : ""}`;
}

export function codecName(spec: { readonly direction: "decode" | "encode"; readonly relaxed: boolean }, format: string): string {
  const word = weightWord(format);
  return spec.direction === "decode" ? `${word}_f32_decode__${arch(spec)}` : `f32_${word}_encode__${arch(spec)}`;
}

export function lutName(spec: LutSpec, weight: string): string {
  return `a8_${weightWord(weight)}_gemv_1x32__${arch(spec)}_${spec.equal ? "ternary" : "lookup"}`;
}
