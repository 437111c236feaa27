// lowbit/quantize: calibration and weight quantizers. `quantize(t, format, gptq({ hessian }))` takes what is made here.
export { gptq, type GptqOptions, type SteppedQuantizer } from "./gptq.ts";
export { rtn, type RtnOptions } from "./rtn.ts";
export { hqq, type HqqOptions } from "./hqq.ts";
export { dequantizeOriginal, mrgptq, rotatedRtn, type MrGptqOptions } from "./mrgptq.ts";
export { fwht, hadamard } from "./hadamard.ts";
export {
  hadamardRotation,
  orthogonalRotation,
  rotateHessian,
  rotationOf,
  type HadamardOptions,
  type Rotation,
  type RotationConfig,
} from "./rotation.ts";
export type { ScaleOptions } from "./grid.ts";
export type { ScaleSearch } from "./search.ts";
export {
  layerStatistics,
  outputError,
  type AddOptions,
  type LayerStatistics,
  type StatisticsAccumulator,
  type StatisticsOptions,
} from "./statistics.ts";
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
export { runStepsAsync, type Progress, type RunOptions } from "./steps.ts";
