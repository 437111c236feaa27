// The tuner over all products of a model: what was chosen as plain JSON, which a file or IndexedDB keeps, and a run
// over all layers. After nn-JIT.web (arXiv 2309.08978): few candidates, measured on the machine, kept by it.
import type { Runtime } from "../../../kernels/wasm/engine/runtime.ts";
import type { SyncLayer } from "../types.ts";
import { restoreTuning, tunedTiles, tuningGains, type TunedTile } from "./dot.ts";
import { tunedFamilies } from "./lut.ts";

/** Tiles that tuning chose on an engine, as plain JSON. */
export interface Tuning {
  readonly version: 1;
  /** Features and threads that the choices hold for. */
  readonly engine: string;
  readonly choices: readonly (TunedTile & { readonly key: string })[];
  /** Kinds of weight that may take look-ups, and the kernels they got. */
  readonly families: readonly { readonly key: string; readonly kernel: string }[];
}

/** What `tune` measured, and by how much it made products faster. */
export interface TuneReport {
  /** Milliseconds that it took. */
  readonly ms: number;
  /** Layers that were reached before the limit. */
  readonly layers: number;
  /** Speed of each kind of product over its default, 1 where that stayed; measured now or before. */
  readonly gains: readonly number[];
}

const engineOf = ({ features, threads }: Runtime): string => JSON.stringify([features, threads]);

/** What a runtime chose so far. */
export function tuningOf(runtime: Runtime): Tuning {
  const choices = [...(tunedTiles(runtime) ?? [])].map(([key, { mr, nv, style }]) => ({
    ...{ key, mr, nv, style },
    gain: tuningGains(runtime).get(key) ?? 1,
  }));
  const families = [...tunedFamilies(runtime)].map(([key, kernel]) => ({ key, kernel }));
  return { version: 1, engine: engineOf(runtime), choices, families };
}

/** Takes choices of an earlier process; those of another engine are left out, and measured anew. @throws TypeError */
export function useTuning(runtime: Runtime, tuning: Tuning): void {
  const { version, engine, choices, families } = tuning ?? {};
  if ((version as number) !== 1 || typeof engine !== "string" || !Array.isArray(choices) || !Array.isArray(families))
    throw new TypeError("wasm tune: expected true, false, or what backend.tuning() gave, got something else.");
  if (engine !== engineOf(runtime)) return;
  restoreTuning(runtime, new Map((choices as Tuning["choices"]).map((c) => [c.key, c])));
  for (const { key, kernel } of families as Tuning["families"]) tunedFamilies(runtime).set(key, kernel);
}

/**
 * Measures tiles for every kind of product of `layers`, at each number of rows, until `limitMs` have passed.
 * @param rows default 1, 16 and 64; others are like the nearest of these
 */
export function tuneLayers(
  runtime: Runtime,
  layers: Iterable<SyncLayer>,
  { rows = [1, 16, 64], limitMs = 30_000 }: { readonly rows?: readonly number[]; readonly limitMs?: number },
): TuneReport {
  const begin = performance.now();
  let count = 0;
  for (const layer of layers) {
    for (const m of rows) {
      if (performance.now() - begin >= limitMs) break;
      layer.run(
        Float32Array.from({ length: m * layer.k }, (_, i) => ((i * 37) % 64) / 32 - 1),
        m,
      );
    }
    if (performance.now() - begin >= limitMs) break;
    count++;
  }
  return { ms: performance.now() - begin, layers: count, gains: [...tuningGains(runtime).values()] };
}
