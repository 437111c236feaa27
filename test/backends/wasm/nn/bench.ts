// What the tests of operator kernels share: tensors laid out at odd addresses in a backend's memory, between guards
// that must stay, on one thread and on two.
import { afterAll, beforeAll, expect } from "vitest";
import type { Family } from "../../../../kernels/wasm/engine/family.ts";
import { engineMemory, type EngineMemory } from "../../../../src/backends/wasm/memory.ts";
import { wasm, type WasmBackend } from "../../../../src/index.ts";

export const FLT_MAX = 3.4028234663852886e38;

/** Backends with one thread and with two. */
export function memories(): EngineMemory[] {
  const found: EngineMemory[] = [];
  const backends: WasmBackend[] = [];
  beforeAll(async () => {
    for (const threads of [1, 2]) backends.push(await wasm({ threads }));
    found.push(...backends.map(engineMemory));
  });
  afterAll(() => backends.forEach((backend) => backend.dispose()));
  return found;
}

const GUARD = 12345.678;

/**
 * Runs a kernel on tensors and returns them as they are afterwards. `job` gets their addresses, each 4 modulo 16 (or
 * 12), with guards before and behind.
 */
export function runOn<Spec extends object>(
  memory: EngineMemory,
  of: Family<Spec>,
  spec: Spec,
  tensors: readonly Float32Array[],
  job: (addresses: readonly number[]) => { readonly items: number; readonly args: Int32Array; readonly panelBytes?: number },
): Float32Array[] {
  const total = tensors.reduce((sum, t) => sum + t.length + 8, 0) + 16;
  const region = memory.allocate(4 * total);
  memory.floats(region.address, total).fill(GUARD);
  const addresses: number[] = [];
  let at = region.address + 4;
  for (const t of tensors) {
    addresses.push(at);
    memory.floats(at, t.length).set(t);
    at += 4 * (t.length + 5);
  }
  const { items, args, panelBytes } = job(addresses);
  memory.run(memory.kernel(of, spec), items, args, panelBytes);
  const after = tensors.map((t, i) => memory.floats(addresses[i], t.length).slice());
  tensors.forEach((t, i) => {
    for (const guard of [addresses[i] - 4, addresses[i] + 4 * t.length, addresses[i] + 4 * t.length + 12])
      expect(memory.floats(guard, 1)[0]).toBe(Math.fround(GUARD));
  });
  region.free();
  return after;
}

/**
 * The distance of two float32 from the exact value, in units in the last place of its float32. Infinities and NaN must
 * agree.
 */
export function ulps(got: number, exact: number): number {
  const nearest = Math.fround(exact);
  if (Number.isNaN(exact)) return Number.isNaN(got) ? 0 : Infinity;
  if (!Number.isFinite(nearest) || !Number.isFinite(got)) {
    // the greatest float32 and infinity are neighbours
    const finite = (v: number): number => (Number.isFinite(v) ? v : Math.sign(v) * 2 ** 128);
    return got === nearest ? 0 : Math.abs(finite(got) - finite(nearest)) / 2 ** 104;
  }
  const exponent = nearest === 0 ? -126 : Math.max(-126, Math.floor(Math.log2(Math.abs(nearest))));
  return Math.abs(got - exact) / 2 ** (exponent - 23);
}
