// Integer products on the WebAssembly backend: activations quantized in memory, then the kernel that
// kernels/wasm/products/choose.ts chose.
import { ACTIVATION_BITS } from "../../../kernels/activations.ts";
import { offsetTerms } from "../../../kernels/offsets.ts";
import { gemmName } from "../../../kernels/names.ts";
import type { WeightSource } from "../../../kernels/weight.ts";
import { activations as activationFamily } from "../../../kernels/wasm/dot/activations.ts";
import { gemm, WORK_ARGUMENTS } from "../../../kernels/wasm/dot/gemm.ts";
import {
  activationRecord,
  correctionFactor,
  totalCorrection,
  weightRecord,
  zipsPlanes,
  type GemmSpec,
} from "../../../kernels/wasm/dot/gemmspec.ts";
import { panelBytes } from "../../../kernels/wasm/dot/operands.ts";
import { strandGroups } from "../../../kernels/wasm/dot/gemmtile.ts";
import type { Kernel, Space } from "../../../kernels/wasm/engine/engine.ts";
import { kernel } from "../../../kernels/wasm/engine/family.ts";
import { hadamard } from "../../../kernels/wasm/convert/hadamard.ts";
import { LowbitError } from "../../../formats/core/errors.ts";
import { recordJob } from "../../../kernels/wasm/engine/items.ts";
import type { Runtime } from "../../../kernels/wasm/engine/runtime.ts";
import type { DotChoice } from "../../../kernels/wasm/products/choose.ts";
import { packWeight } from "../../../kernels/wasm/dot/pack.ts";
import { resultStride } from "../../../kernels/wasm/products/tiles.ts";
import { fastestOf, rowClass, tileCandidates, tuneKey } from "../../../kernels/wasm/products/tuner.ts";
import { arranged, type Mixture } from "../layer.ts";
import type { Activations } from "../types.ts";
import { packRows } from "./rows.ts";
import { streamsOf } from "./streams.ts";
import { rowsFrom, stage, weightMemory, type Product, type Rows } from "./product.ts";

/** A panel and a tile's activations share the first-level cache. */
const PANEL_BYTES = 12 * 1024;

/** Elements of an item of the transform. */
const ROTATE_ITEM = 16384;

interface DotProduct extends Product {
  multiplyWith(spec: GemmSpec, x: Rows, m: number, c: number, stride: number, blocks?: number): void;
}

/** Tiles that tuning chose, by `tuneKey`. */
const tiles = new WeakMap<Runtime, Map<string, GemmSpec>>();
/** How many times as fast as the default each was. */
const gains = new WeakMap<Runtime, Map<string, number>>();

export const tuningGains = (runtime: Runtime): Map<string, number> => {
  const found = gains.get(runtime) ?? new Map<string, number>();
  gains.set(runtime, found);
  return found;
};
/** Tiles of an earlier process by `tuneKey`: taken where they are among the candidates. */
const known = new WeakMap<Runtime, ReadonlyMap<string, TunedTile>>();
export const restoreTuning = (runtime: Runtime, choices: ReadonlyMap<string, TunedTile>): void => void known.set(runtime, choices);

/** A tile that tuning chose. */
export interface TunedTile {
  readonly mr: number;
  readonly nv: number;
  readonly style: string;
  readonly gain: number;
}

/** Those of a runtime; null where tuning is off. */
export function tunedTiles(runtime: Runtime): Map<string, GemmSpec> | null {
  if (!runtime.tune) return null;
  const found = tiles.get(runtime) ?? new Map<string, GemmSpec>();
  tiles.set(runtime, found);
  return found;
}

/** Rows of floats transformed in blocks, beside where they lie. @returns where */
function rotate(runtime: Runtime, space: Space, x: number, count: number, n: number): number {
  const address = space.scratch("rotated", 4 * count);
  // a recorded run would not copy
  space.record = null;
  new Uint8Array(space.buffer).copyWithin(address, x, x + 4 * count);
  const blocks = count / n;
  const per = Math.max(1, Math.floor(ROTATE_ITEM / n));
  const factor = new Int32Array(Float32Array.of(1 / Math.sqrt(n)).buffer)[0];
  runtime.work(
    space,
    kernel(hadamard, { n, shared: runtime.shared }),
    Math.ceil(blocks / per),
    Int32Array.of(address, blocks, per, factor),
    0,
  );
  return address;
}

/** Rows of floats in another order of channels, beside where they lie. */
function arrange(space: Space, x: Rows, m: number, order: Int32Array): number {
  const count = m * order.length;
  const address = space.scratch("arranged", 4 * count);
  // a recorded run would not do it again
  space.record = null;
  arranged(typeof x === "number" ? new Float32Array(space.buffer, x, count) : x, order, new Float32Array(space.buffer, address, count));
  return address;
}

/** How activations become codes. */
export interface DotActivations extends Mixture {
  readonly activations: Exclude<Activations, "float32">;
  /** Length of the transform of channels, or 0. */
  readonly hadamard: number;
}

export function dotProduct(
  runtime: Runtime,
  source: WeightSource,
  choice: DotChoice,
  { activations, hadamard: turned, wide, order }: DotActivations,
  label: string,
): Product {
  const { plan, shape } = choice;
  if (turned !== 0 && shape.groups * shape.group !== source.k)
    throw new LowbitError(
      "E_UNSUPPORTED",
      `prepareMatmul hadamard: expected groups of the weight that need no padding, got ${shape.groups} of ${shape.group} for k = ${source.k}. Take blocks of a multiple of 16 that divide k.`,
    );
  const { space, address } = weightMemory(runtime, shape.bytes);
  const standard = choice.spec;
  const tuned = tunedTiles(runtime);
  /** Choices by class of rows: null where the default is the fastest, which may be another tile for each m. */
  const choices = new Map<number, GemmSpec | null>();
  const choose = (m: number): void => {
    const key = tuneKey(standard(m), m);
    const found = tuned?.get(key);
    if (found !== undefined) choices.set(rowClass(m), tuningGains(runtime).get(key) === 1 ? null : found);
  };
  const tileOf = (m: number): GemmSpec => (tuned === null ? null : choices.get(rowClass(m))) ?? standard(m);
  /** Compiled code by spec, which is one object per kernel. */
  const compiled = new Map<GemmSpec, { quantize: Kernel; gemm: Kernel }>();
  const compile = (spec: GemmSpec): { quantize: Kernel; gemm: Kernel } => {
    let found = compiled.get(spec);
    if (found === undefined) {
      const quantizer = {
        style: spec.style,
        inOrder: zipsPlanes(spec),
        activationBits: spec.activationBits,
        codeBits: ACTIVATION_BITS.get(activations)!,
        mr: spec.mr,
        totals: totalCorrection(spec),
        mixed: wide > 0,
        shared: runtime.shared,
      };
      const quantize = kernel(activationFamily, quantizer);
      found = { quantize, gemm: kernel(gemm, spec) };
      compiled.set(spec, found);
    }
    return found;
  };
  const rowsOf = (spec: GemmSpec, m: number): number => Math.ceil(m / spec.mr) * spec.mr;
  const product: DotProduct = {
    space,
    address,
    activations,
    name: (m) => gemmName(tileOf(m), label),
    reasons: [...choice.reasons, ...(wide === 0 ? [] : [`the first ${wide} of ${source.k} channels keep 8 bits`])],
    rows: (m) => rowsOf(tileOf(m), m),
    tune(x, m) {
      if (tuned === null || choices.has(rowClass(m))) return;
      choose(m);
      if (choices.has(rowClass(m))) return;
      const count = Math.min(m, 64);
      const part = rowsFrom(x, 0, count, source.k);
      const candidates = tileCandidates(standard(m), count);
      const key = tuneKey(standard(m), m);
      const before = known.get(runtime)?.get(key);
      const same = candidates.find((c) => c.mr === before?.mr && c.nv === before.nv && c.style === before.style);
      if (before !== undefined && same !== undefined) {
        tuned.set(key, same);
        tuningGains(runtime).set(key, before.gain);
        choose(m);
        return;
      }
      // results of the measured runs are thrown away
      const most = Math.max(...candidates.map((spec) => rowsOf(spec, count)));
      const stride = resultStride(source.rows, most);
      const c = space.scratch("tune", 4 * stride * most);
      const { chosen, gain } = fastestOf(candidates, (spec) => product.multiplyWith(spec, part, count, c, stride));
      tuned.set(key, chosen);
      tuningGains(runtime).set(key, gain);
      choose(m);
    },
    pack() {
      const parts = offsetTerms(source, plan);
      const record = weightRecord({ bits: plan.bits, group: shape.group, half: shape.half, ...parts });
      if (packRows(runtime, space, { source, plan, cut: shape, record, parts, address })) return;
      packWeight(source, plan, shape, space.buffer, address);
    },
    kernel: () => compile(tileOf(1)).gemm,
    multiply: (x, m, c, stride, blocks) => product.multiplyWith(tileOf(m), x, m, c, stride, blocks),
    multiplyWith(spec, x, m, c, stride, blocks = shape.blocks) {
      const { mr } = spec;
      const record = activationRecord(spec);
      const tiles = Math.ceil(m / mr);
      const padded = tiles * mr;
      const { groups, group, span } = shape;
      const { quantize, gemm } = compile(spec);
      const a = space.scratch("a", tiles * groups * record.bytes);
      const own = order === null ? x : arrange(space, x, m, order);
      const given = stage(space, own, m, padded, { k: source.k, span, group, groups });
      const staged = turned === 0 ? given : rotate(runtime, space, given, padded * groups * group, turned);
      const tileBytes = groups * record.bytes;
      const factor = correctionFactor(spec, plan.shift);
      const records = recordJob({ x: staged, a, tiles, mr, groups, group, bytes: record.bytes, factor, wide: Math.ceil(wide / span) });
      runtime.work(space, quantize, records.items, records.args, 0);
      const strands = streamsOf(runtime, space);
      const chunk = spec.panel
        ? Math.max(1, Math.floor(PANEL_BYTES / panelBytes(spec)))
        : mr === 1
          ? strandGroups(strands, weightRecord(spec).bytes)
          : Math.max(1, Math.floor(1024 / group));
      const items = mr === 1 ? Math.ceil(blocks / Math.max(1, Math.min(strands, Math.floor(blocks / runtime.threads)))) : blocks;
      const values = {
        a,
        w: address,
        c,
        ldc: 4 * stride,
        groups,
        tiles,
        chunk,
        aStride: tileBytes,
        blocks: mr === 1 ? blocks : shape.blocks,
        items,
      };
      runtime.work(
        space,
        gemm,
        items,
        Int32Array.from(WORK_ARGUMENTS, (name) => values[name]),
        spec.panel ? chunk * panelBytes(spec) : 0,
      );
    },
  };
  return product;
}
