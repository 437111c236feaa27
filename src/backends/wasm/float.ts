// Products with float32 activations on the WebAssembly backend.
import { floatName } from "../../../kernels/names.ts";
import type { WeightSource } from "../../../kernels/weight.ts";
import type { Kernel, Space } from "../../../kernels/wasm/engine/engine.ts";
import { kernel } from "../../../kernels/wasm/engine/family.ts";
import { recordJob } from "../../../kernels/wasm/engine/items.ts";
import type { Runtime } from "../../../kernels/wasm/engine/runtime.ts";
import { decodeExponent, float, FLOAT_ARGUMENTS, floatPack, floatRecord } from "../../../kernels/wasm/float/float.ts";
import { floatPlan, floatRows, floatSpec, type FloatPlan } from "../../../kernels/wasm/float/floatplan.ts";
import { packFloat } from "../../../kernels/wasm/float/pack.ts";
import { packRows } from "./rows.ts";
import { stage, weightMemory, type Product } from "./product.ts";

/** Where records lie that others write, and that may move; `pack` is theirs. */
export interface RecordPlace {
  readonly space: Space;
  readonly address: () => number;
}

/** `plan`, `place`: of records that the caller writes before each product. */
export function floatProduct(
  runtime: Runtime,
  source: WeightSource,
  label: string,
  reasons: readonly string[],
  plan: FloatPlan = floatPlan(source),
  place?: RecordPlace,
): Product {
  const { relaxed } = runtime.features;
  const tableBytes = plan.table === null ? 0 : 1024;
  const { space, address } = place === undefined ? weightMemory(runtime, plan.bytes + tableBytes) : { space: place.space, address: 0 };
  const records = place?.address ?? ((): number => address);
  const { group } = plan.layout;
  const spec = (m: number) => floatSpec(plan, floatRows(m, relaxed), relaxed, runtime.shared);
  /** Compiled code by rows per tile. */
  const compiled: Kernel[] = [];
  const compile = (m: number): Kernel => (compiled[floatRows(m, relaxed)] ??= kernel(float, spec(m)));
  const tilesOf = (m: number): number => Math.ceil(m / floatRows(m, relaxed));
  return {
    space,
    address,
    activations: "float32",
    name: (m) => floatName(spec(m), label),
    reasons: [...reasons, plan.reason],
    rows: (m) => tilesOf(m) * floatRows(m, relaxed),
    pack() {
      const { layout } = plan;
      const isPacked =
        plan.decode.kind !== "table4" &&
        layout.bits <= 8 &&
        packRows(runtime, space, {
          source,
          plan: { ...plan, bits: layout.bits },
          cut: { ...plan, group },
          record: floatRecord(layout),
          parts: layout,
          address,
        });
      if (!isPacked) packFloat(source, plan, space.buffer, address);
      if (plan.table !== null) new Float32Array(space.buffer, address + plan.bytes, 256).set(plan.table);
    },
    kernel: () => compile(1),
    multiply(x, m, c, stride, blocks = plan.blocks) {
      const mr = floatRows(m, relaxed);
      const tiles = tilesOf(m);
      const padded = tiles * mr;
      const width = plan.groups * group;
      const built = compile(m);
      const staged = stage(space, x, m, padded, { k: source.k, span: plan.span, group, groups: plan.groups });
      let a = staged;
      let unscale = 1;
      if (mr > 1) {
        a = space.scratch("a", 4 * padded * width);
        const packing = { mr, shared: runtime.shared };
        const packed = recordJob({ x: staged, a, tiles, mr, groups: plan.groups, group, bytes: 4 * mr * group });
        runtime.work(space, kernel(floatPack, packing), packed.items, packed.args, 0);
      } else if (plan.layout.scale && !plan.scaleFirst) [a, unscale] = normalise(space, staged, width, decodeExponent(plan.decode) !== 0);
      // chunks of rows that the second-level cache holds, of one size, and enough of them that threads end together
      const least = runtime.threads === 1 ? 1 : Math.ceil((32 * runtime.threads) / blocks);
      const tilesPerChunk = Math.ceil(tiles / Math.min(tiles, Math.max(least, Math.ceil((mr * tiles) / 192))));
      const chunk = Math.max(1, Math.floor(256 / group));
      const values = {
        blocks,
        a,
        w: records(),
        c,
        ldc: 4 * stride,
        groups: plan.groups,
        tiles,
        chunk: tilesPerChunk * 65536 + chunk,
        aStride: 4 * mr * width,
        table: records() + plan.bytes,
      };
      const args = Int32Array.from(FLOAT_ARGUMENTS, (name) => values[name]);
      runtime.work(space, built, blocks * Math.ceil(tiles / tilesPerChunk), args, mr === 1 ? 0 : 64 * group * chunk);
      if (unscale !== 1) {
        const y = new Float32Array(space.buffer, c, source.rows);
        for (let i = 0; i < y.length; i++) y[i] *= unscale;
      }
    },
  };
}

/** Activations whose products with elements that are not yet scaled stay far from both ends of float32. */
const CALM = 2 ** 64;

/**
 * Multiplies a row of `width` floats at `x` by a power of two so that its largest magnitude is near 2^40; returns
 * where it lies then, and the factor that undoes it. That is done where the row is so large or small that sums could
 * overflow, or products underflow, before a group's scale is applied, and for `fields` always: those are moved into a
 * float32 as 2^-112 or 2^-120 of their value until a group ends, and their products are to stay above the subnormal
 * range.
 */
function normalise(space: Space, x: number, width: number, fields: boolean): [address: number, unscale: number] {
  // what runs depends on the values
  space.record = null;
  const row = new Float32Array(space.buffer, x, width);
  let amax = 0;
  for (let i = 0; i < width; i++) {
    const magnitude = Math.abs(row[i]);
    if (magnitude > amax) amax = magnitude;
  }
  if (amax === 0 || !Number.isFinite(amax) || (!fields && amax < CALM && amax > 1 / CALM)) return [x, 1];
  const power = Math.min(126, Math.max(-126, 40 - Math.floor(Math.log2(amax))));
  const factor = 2 ** power;
  // not where it lies: it may be a caller's
  const address = space.scratch("normal x", 4 * width);
  const from = new Float32Array(space.buffer, x, width);
  const to = new Float32Array(space.buffer, address, width);
  for (let i = 0; i < width; i++) to[i] = from[i] * factor;
  return [address, 2 ** -power];
}
