// lowbit/quantize: calibration and weight quantizers. `quantize(t, format, gptq({ hessian }))` takes what is made here.
export { gptq, type GptqOptions, type SteppedQuantizer } from "./gptq.ts";
export { rtn, type RtnOptions } from "./rtn.ts";
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
export { seededRandom } from "./random.ts";
export type { Progress, RunOptions } from "./steps.ts";
