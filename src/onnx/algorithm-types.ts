// Names and options of algorithms on the layers of models, and what an algorithm is given of a layer.
import type { AdaRoundOptions } from "../quantize/adaround.ts";
import type { AwqOptions } from "../quantize/awq.ts";
import type { HqqOptions } from "../quantize/hqq.ts";
import type { MrGptqOptions } from "../quantize/mrgptq.ts";
import type { DriftStatistics } from "../quantize/refit.ts";
import type { RtnOptions } from "../quantize/rtn.ts";
import type { LayerStatistics } from "../quantize/statistics.ts";
import type { WeightQuantizer } from "../tensor/quantize/index.ts";
import type { Tensor } from "../tensor/tensor.ts";
import type { Layer } from "./layers.ts";

/** Algorithms by which `quantizeModel` chooses codes; `rtn` and `mse` need no data. */
export type AlgorithmName = "rtn" | "mse" | "hqq" | "awq" | "gptq" | "mrgptq" | "adaround" | "refit";

/** What a quantizer can know of a layer (of one group of a grouped convolution). */
export interface AlgorithmInput {
  readonly layer: Layer;
  readonly name: string;
  readonly rows: number;
  readonly k: number;
  /** null without calibration data, and for layers that cannot be calibrated. */
  readonly statistics: LayerStatistics | null;
  /** The same over the batches held out. */
  readonly heldOut: LayerStatistics | null;
  /** Sequential: both inputs, of the float model and of the model quantized so far. */
  readonly drift: DriftStatistics | null;
  /** The same over the batches held out. */
  readonly heldOutDrift?: DriftStatistics | null;
  /** Rows spread over the whole weight, where it is quantized in bands: options are chosen on them, once for all. */
  readonly sample?: Tensor;
}

/** A name, a name with options of its quantizer, or a function that makes one for each layer. */
export type Algorithm =
  AlgorithmName | (AlgorithmOptions & { readonly name: AlgorithmName }) | ((layer: AlgorithmInput) => WeightQuantizer);

/** Options of the quantizers of lowbit/quantize, without what calibration gives them. Each algorithm takes its own. */
export type AlgorithmOptions = Partial<
  Omit<RtnOptions, "signal" | "onProgress"> &
    Omit<HqqOptions, "signal" | "onProgress"> &
    Omit<AwqOptions, "statistics" | "name" | "search" | "signal" | "onProgress"> &
    Omit<MrGptqOptions, "hessian" | "name" | "search" | "seed" | "signal" | "onProgress"> &
    Omit<AdaRoundOptions, "hessian" | "name" | "search" | "signal" | "onProgress"> & {
      readonly ridge: number;
    }
>;

/** The quantizer of one layer, for all bands of it. */
export interface LayerAlgorithm extends WeightQuantizer {
  /** Gives back what it keeps between bands. */
  close?(): void;
}
