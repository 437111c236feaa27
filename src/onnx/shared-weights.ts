// Layers that read one constant in one form: a weight that an algorithm makes once for all of them, from what all of
// their inputs say together, so that it stays one weight in the file.
import type { Format } from "../../formats/core/types.ts";
import type { Algorithm } from "./algorithm-types.ts";
import type { InputStatistics } from "./calibrate/statistics.ts";
import type { Layer } from "./layers.ts";
import { layoutKey, layerMatrix } from "./weights.ts";
import { mergeStatistics, type LayerStatistics } from "../quantize/statistics.ts";
import { weightLayout } from "./matrix.ts";

/** For each layer the first of those that share its weight, format and algorithm: mostly itself. */
export function firstReaders(
  layers: readonly Layer[],
  decide: (layer: Layer) => { readonly format: Format; readonly algorithm: Algorithm },
): ReadonlyMap<Layer, Layer> {
  const numbers = new Map<unknown, number>();
  const numberOf = (one: unknown): number => {
    const known = numbers.get(one) ?? numbers.size;
    numbers.set(one, known);
    return known;
  };
  const firsts = new Map<string, Layer>();
  return new Map(
    layers.map((layer) => {
      const matrix = layerMatrix(layer);
      if (layer.weight === null || typeof matrix === "string") return [layer, layer];
      const { format, algorithm } = decide(layer);
      const by = typeof algorithm === "function" ? numberOf(algorithm) : algorithm;
      const form = [layoutKey(layer, matrix), weightLayout(layer).groups, format.definition, by];
      const key = `${numberOf(layer.weight.source)} ${JSON.stringify(form)}`;
      const first = firsts.get(key) ?? layer;
      firsts.set(key, first);
      return [layer, first];
    }),
  );
}

/** One object for all layers that a weight or a calibrated input binds together: they belong into one shard. */
export function boundTogether(
  layers: readonly Layer[],
  inputOf: (layer: Layer) => string,
  first: ReadonlyMap<Layer, Layer>,
): ReadonlyMap<Layer, object> {
  const above = new Map<unknown, unknown>();
  const root = (one: unknown): unknown => {
    let at = one;
    while (above.has(at)) at = above.get(at);
    return at;
  };
  const bind = (a: unknown, b: unknown): void => {
    const [from, to] = [root(a), root(b)];
    if (from !== to) above.set(from, to);
  };
  for (const layer of layers) {
    bind(layer, inputOf(layer));
    bind(layer, first.get(layer));
  }
  const units = new Map<unknown, object>();
  return new Map(
    layers.map((layer) => {
      const unit = units.get(root(layer)) ?? {};
      units.set(root(layer), unit);
      return [layer, unit];
    }),
  );
}

/** What two inputs say of the weight that both are multiplied with. */
export function mergeInputs(a: InputStatistics, b: InputStatistics): InputStatistics {
  const all = (x: readonly LayerStatistics[], y: readonly LayerStatistics[]) => x.map((one, g) => mergeStatistics(one, y[g]));
  return {
    ...a,
    statistics: all(a.statistics, b.statistics),
    heldOut: a.heldOut === null || b.heldOut === null ? null : all(a.heldOut, b.heldOut),
  };
}
