// lowbit/quantize: calibration and weight quantizers. `quantize(t, format, gptq({ hessian }))` takes what is made here.
export { gptq, type GptqOptions } from "./gptq.ts";
export { rtn, type RtnOptions } from "./rtn.ts";
export { prune, type PruneOptions } from "./prune.ts";
export { SPARSITY_PATTERNS, type Sparsity, type SparsityPattern } from "./sparsity.ts";
export { hqq, type HqqOptions } from "./hqq.ts";
export {
  dequantizeOriginal,
  mrgptq,
  rotatedRtn,
  searchRotation,
  type FoundRotation,
  type MrGptqOptions,
  type RotationSearch,
} from "./mrgptq.ts";
export { searchSmoothing, type Smoothing, type SmoothSearch } from "./smooth.ts";
export { fwht, hadamard } from "./hadamard.ts";
export {
  hadamardRotation,
  orthogonalRotation,
  rotateHessian,
  rotationOf,
  type HadamardOptions,
  type Rotation,
  type RotationConfig,
  type TransformBackend,
} from "./rotation.ts";
export type { ScaleOptions } from "./grid.ts";
export type { ScaleSearch } from "./search.ts";
export {
  layerStatistics,
  mergeStatistics,
  outputError,
  type AddOptions,
  type LayerStatistics,
  type StatisticsAccumulator,
  type StatisticsOptions,
} from "./statistics.ts";
export { convStatistics, im2col, type ConvGeometry, type ConvStatisticsAccumulator, type PatchOptions } from "./im2col.ts";
export type { AlgebraOptions } from "./simd.ts";
export { observer, type ObservedRanges, type Observer, type ObserverOptions } from "./observers.ts";
export {
  calibrate,
  type CalibrateOptions,
  type CalibrationArray,
  type CalibrationBatch,
  type CalibrationSource,
  type LayerCalibration,
  type LayerRequest,
} from "./calibrate.ts";
export { gaussian, seededRandom } from "./random.ts";
export { runStepsAsync, type Progress, type RunOptions, type SteppedQuantizer } from "./steps.ts";
export { awq, awqLayers, type AwqOptions } from "./awq.ts";
export { adaround, type AdaRoundOptions } from "./adaround.ts";
export { quest } from "./quest.ts";
export { gaussianClip, type GaussianClip } from "./normal.ts";
export {
  absorbHighBias,
  centerOutputs,
  channelAmax,
  clippedNormalMean,
  correctBias,
  crossLayerEqualize,
  divideRows,
  foldBatchNorm,
  foldNorm,
  scaleColumns,
  smoothFactors,
  type BatchNorm,
  type Linear,
  type Linear64,
} from "./equalize.ts";
export { advise, predictQsnr, profile, storedBits, type Advice, type TensorProfile } from "./advise.ts";
export { plan, relativeLoss, type Plan, type PlanLayer, type PlannedLayer, type PlanOptions, type PlanPolicy } from "./plan.ts";
export {
  dequantizeMixed,
  mixedBytes,
  outlierSplit,
  permuteColumns,
  permuteRows,
  quantizeMixed,
  selectChannels,
  splitColumns,
  storedBytes,
  type ChannelSplit,
  type MixedOptions,
  type MixedTensor,
  type SplitOptions,
} from "./mixed.ts";
export {
  correctDriftBias,
  driftError,
  driftStatistics,
  mergeDrift,
  refit,
  refitWeight,
  type DriftAccumulator,
  type DriftAddOptions,
  type DriftStatistics,
  type RefitOptions,
} from "./refit.ts";
export * from "./integer/index.ts";
