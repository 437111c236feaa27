// What passes share: a pass is a rewrite of the model in place that keeps its function. It says what it changed, and
// why it changed nothing.
import type { LayerStatistics } from "../../quantize/statistics.ts";
import type { OnnxModel } from "../file/model.ts";
import type { Scope } from "../graph/graph.ts";
import type { Reader } from "../edit.ts";
import type { ModelLayer } from "../primitives.ts";

/**
 * Statistics of the inputs of some layers (by name) of a model as it is now. Layers that it cannot give may be missing.
 */
export type LayerCalibration = (
  model: OnnxModel,
  layers: readonly string[],
  options: { readonly hessian: boolean },
) => Promise<ReadonlyMap<string, LayerStatistics>>;

export interface PassContext {
  readonly model: OnnxModel;
  readonly scopes: readonly Scope[];
  readonly layers: readonly ModelLayer[];
  /** The layer of a node, where it has a constant weight. */
  readonly layerOf: ReadonlyMap<unknown, ModelLayer>;
  /** Who reads a value that `scope` defines. True at the start of the pass, and after `refresh`. */
  readers(scope: Scope, name: string): readonly Reader[];
  /** Looks at the graph again, after nodes were put in or taken out. */
  refresh(): void;
  /** A line for the user. */
  note(text: string): void;
  /** @throws LowbitError E_CALIBRATION where no calibration was given */
  statistics(layers: readonly string[], options: { readonly hessian: boolean }): Promise<ReadonlyMap<string, LayerStatistics>>;
}

/** A pass and its options, as users name them: "rotate" or { name: "rotate", block: 64 }. */
export type PassRequest = string | PassSettings;

/** A pass by name, with its own options beside. */
export interface PassSettings {
  readonly name: string;
  readonly [option: string]: unknown;
}

export interface Pass {
  readonly name: string;
  /** Names of the options that it takes. */
  readonly options: readonly string[];
  /** The outputs change, on purpose. */
  readonly changesOutputs?: boolean;
  /** Checks the values of options, before anything is done. @throws TypeError, RangeError */
  check?(settings: PassSettings): void;
  /** Rewrites the model. Returns how many places were changed; where there is none it notes why. */
  run(context: PassContext, settings: PassSettings): Promise<number> | number;
}
