// Products by table look-up on the WebAssembly backend: lut.ts and ternary.ts, and when they are taken.
import { isLowbitError, LowbitError } from "../../../formats/core/errors.ts";
import { lutName } from "../../../kernels/names.ts";
import type { WeightSource } from "../../../kernels/weight.ts";
import { LUT_ARGUMENTS, lut, lutTable, lutTables } from "../../../kernels/wasm/lookup/lut.ts";
import { recordJob } from "../../../kernels/wasm/engine/items.ts";
import { chooseLut, packLut, type LutChoice } from "../../../kernels/wasm/lookup/lutpack.ts";
import { resultStride } from "../../../kernels/wasm/products/tiles.ts";
import { fastest } from "../../../kernels/wasm/products/tuner.ts";
import type { Kernel } from "../../../kernels/wasm/engine/engine.ts";
import { kernel } from "../../../kernels/wasm/engine/family.ts";
import type { Runtime } from "../../../kernels/wasm/engine/runtime.ts";
import type { PrepareOptions } from "../types.ts";
import { rowsFrom, stage, weightMemory, type Product } from "./product.ts";

/** Elements of k whose tables and weights are kept near while many rows of activations pass. */
const CHUNK = 1024;

/** Elements whose tables are an item of work for a thread. */
const TABLE_ELEMENTS = 2048;

/** Rows of activations at once: their tables take 8 bytes per element. */
const ROWS = 64;

export function lutProduct(runtime: Runtime, source: WeightSource, choice: LutChoice, label: string): Product {
  const { spec, groups, span } = choice;
  const { space, address } = weightMemory(runtime, choice.bytes);
  const { group } = spec;
  const own = (): Kernel => kernel(lut, spec);
  return {
    space,
    address,
    activations: "int8",
    name: () => lutName(spec, label),
    reasons: choice.reasons,
    rows: (m) => m,
    pack: () => packLut(source, choice, space.buffer, address),
    kernel: own,
    multiply(x, m, c, stride, blocks = choice.blocks) {
      const built = own();
      const aStride = groups * lutTables(group);
      const ldc = 4 * stride;
      const count = Math.min(m, ROWS);
      const a = space.scratch("a", count * aStride);
      const chunk = m === 1 ? groups : Math.max(1, Math.floor(CHUNK / group));
      const maker = kernel(lutTable, spec);
      for (let from = 0; from < m; from += count) {
        const rows = Math.min(count, m - from);
        const part = rowsFrom(x, from, rows, source.k);
        const staged = stage(space, part, rows, rows, { k: source.k, span, group, groups });
        const tables = recordJob({ x: staged, a, tiles: rows, mr: 1, groups, group, bytes: lutTables(group), elements: TABLE_ELEMENTS });
        runtime.work(space, maker, tables.items, tables.args, 0);
        const values = { blocks, a, w: address, c: c + from * ldc, ldc, groups, rows, chunk, aStride };
        runtime.work(
          space,
          built,
          Math.ceil(blocks / 2),
          Int32Array.from(LUT_ARGUMENTS, (name) => values[name]),
          0,
        );
      }
    },
  };
}

/** The error for a weight that the kernel named in `prepareMatmul` cannot run. */
export function refusedKernel(kind: string, reason: string): LowbitError {
  return new LowbitError(
    "E_UNSUPPORTED",
    `prepareMatmul kernel: expected a weight and activations for "${kind}" products, got ${reason}. Leave the option out.`,
  );
}

/**
 * Look-up kernels that may stand in for the dot products of a weight, best first; `standard`: the first is the default.
 * By measurement (bench/lut.ts, the table in docs/adding-a-kernel.md): one bit plane is faster looked up everywhere;
 * two planes, or ternary values, where there is no relaxed dot product; three planes gain there for one row of
 * activations and lose for many; four lose.
 */
function alternatives(runtime: Runtime, source: WeightSource, all: boolean): { readonly choices: LutChoice[]; readonly standard: boolean } {
  const lookup = chooseLut(source, "lookup", runtime);
  const planes = typeof lookup === "string" ? Infinity : lookup.plan.planes;
  const fallback = !runtime.features.relaxed;
  if (!all && planes > 1 && !fallback) return { choices: [], standard: false };
  const ternary = planes === 1 ? "one plane is enough" : chooseLut(source, "ternary", runtime);
  const choices = [ternary, lookup].filter((choice) => typeof choice !== "string");
  return { choices, standard: planes === 1 || (fallback && (typeof ternary !== "string" || planes === 2)) };
}

/** Families that measuring chose, by the kind of weight. */
const chosen = new WeakMap<Runtime, Map<string, string>>();

/** Those of a runtime: "dot", "lookup" or "ternary"; what is set is not measured. */
export function tunedFamilies(runtime: Runtime): Map<string, string> {
  const found = chosen.get(runtime) ?? new Map<string, string>();
  chosen.set(runtime, found);
  return found;
}

/**
 * The integer kernel of a weight: the one `options.kernel` names, else look-ups where they are faster, else dot
 * products.
 * @throws LowbitError E_UNSUPPORTED
 */
export function integerProduct(
  runtime: Runtime,
  source: WeightSource,
  options: PrepareOptions,
  label: string,
  dot: () => Product,
): Product {
  const { kernel: kind, activations } = options;
  if (kind === "lookup" || kind === "ternary") {
    const choice = chooseLut(source, kind, runtime);
    if (typeof choice === "string") throw refusedKernel(kind, choice);
    return lutProduct(runtime, source, choice, label);
  }
  if (kind !== undefined && kind !== "dot")
    throw new TypeError(`prepareMatmul kernel: expected "dot", "lookup" or "ternary", got ${String(kind)}.`);
  if (kind === "dot" || activations !== "int8") return dot();
  const { choices, standard } = alternatives(runtime, source, runtime.tune);
  const candidates = choices.map((choice) => ({
    key: choice.spec.equal ? "ternary" : "lookup",
    make: () => lutProduct(runtime, source, choice, label),
  }));
  if (standard) candidates.splice(1, 0, { key: "dot", make: dot });
  else candidates.unshift({ key: "dot", make: dot });
  if (!runtime.tune || candidates.length === 1) return candidates[0].make();
  const families = tunedFamilies(runtime);
  const { spec } = choices[0];
  const key = JSON.stringify([spec, choices.length, source.rows > 1024, source.k > 1024]);
  const known = candidates.find((candidate) => candidate.key === families.get(key));
  if (known !== undefined) return known.make();
  const products = candidates.flatMap((candidate, i) => {
    try {
      return [{ key: candidate.key, product: candidate.make() }];
    } catch (error) {
      // no room for another copy of the weight: it is not measured
      if (i > 0 && isLowbitError(error) && error.code === "E_DEVICE") return [];
      throw error;
    }
  });
  let best: Measured;
  try {
    best = measured(source, products);
  } catch (error) {
    for (const { product } of products) product.space.arena.free(product.address);
    throw error;
  }
  families.set(key, best.key);
  return best.product;
}

/** Rows of activations that a choice of family is measured on: one by one, and all at once. */
const MEASURED = 8;

interface Measured {
  readonly key: string;
  readonly product: Product;
}

/** The fastest of several products of one weight, the first unless another is clearly faster; the others are freed. */
function measured(source: WeightSource, products: readonly Measured[]): Measured {
  const { rows: n, k } = source;
  const x = Float32Array.from({ length: MEASURED * k }, (_, i) => Math.sin(i * 12.9898) * 3);
  const stride = resultStride(n, MEASURED);
  const best = fastest(products, ({ product }) => {
    const c = product.space.scratch("tune", 4 * stride * product.rows(MEASURED));
    for (let r = 0; r < MEASURED; r++) product.multiply(x.subarray(r * k, (r + 1) * k), 1, c, stride);
    product.multiply(x, MEASURED, c, stride);
  });
  for (const { product } of products) if (product !== best.product) product.space.arena.free(product.address);
  return best;
}
