// lowbit/onnx: quantizes ONNX models without Python. Bytes in, bytes out works anywhere; functions that take paths need
// Node.
export { inspectModel, summarizeModel } from "./inspect.ts";
export type { LayerSummary, ModelSummary, ValueSummary } from "./inspect.ts";
export { readModel, readModelBytes, writeModel, writeModelBytes } from "./file/io.ts";
export { addOutputs, modelLayers, readBias, readWeight, writeBias, writeWeight } from "./primitives.ts";
export type { ModelLayer } from "./primitives.ts";
export { calibrationFrom } from "./passes/calibration.ts";
export { applyPasses, checkPasses } from "./passes/index.ts";
export type { ApplyPassesOptions, LayerCalibration as PassCalibration, PassRequest, PassSettings } from "./passes/index.ts";
export { BUDGET_CANDIDATES, measureImportance, planBudget } from "./budget.ts";
export type { BudgetOptions, BudgetReport, ImportanceOptions } from "./budget.ts";
export { measureSensitivity, reachSqnr } from "./sensitivity.ts";
export type {
  LayerSensitivity,
  QuantizeWith,
  SensitivityOptions,
  SensitivityReport,
  SingleRule,
  TargetOptions,
  TargetReport,
} from "./sensitivity.ts";
export { compareLayers } from "./verify/layers.ts";
export type { LayerComparison } from "./verify/layers.ts";
export type { OnnxFile, WriteOptions } from "./file/io.ts";
export type { OnnxModel } from "./file/model.ts";
export { FP16_BLOCKED_OPS } from "./targets/fp16.ts";
export { DTYPES, ONNX_DTYPES, dtypeFileName } from "./dtypes.ts";
export type { Dtype, OnnxDtype, TargetName } from "./dtypes.ts";
export { quantizeFolder } from "./folder.ts";
export type { FolderEntry, FolderReport, QuantizeFolderOptions } from "./folder.ts";
export { configFile, parseRecipe, recipeOf } from "./recipe.ts";
export type {
  AlgorithmChoice,
  FormatChoice,
  LayerReport,
  LayerRule,
  NamePattern,
  QuantizeModelOptions,
  QuantizeOptions as ConvertOptions,
  QuantizeProgress,
  QuantizeReport,
} from "./options.ts";
export { losslessInitializers } from "./lossless.ts";
export { placeModel } from "./place/file.ts";
export { placeWeights } from "./place/index.ts";
export type { ForeignWeights, PlacedLayer, PlaceOptions, PlaceReport } from "./place/index.ts";
export type { PlaceRule } from "./place/names.ts";
export { dequantizeWeights } from "./dequantize/index.ts";
export { useRuntime } from "./session.ts";
export type { RuntimeModule } from "./session.ts";
export { reportHtml } from "./report/html.ts";
export type { ReportContent } from "./report/html.ts";
export { worstHistograms } from "./report/histogram.ts";
export type { WeightHistogram } from "./report/histogram.ts";
export { writeReport } from "./report/write.ts";
export { convertModel } from "./convert.ts";
export type { ConvertResult } from "./convert.ts";
export { quantizeModel, quantizeModelBytes } from "./quantize.ts";
export type { QuantizeBytesOptions } from "./quantize.ts";
export { mergeShards } from "./merge.ts";
export type { MergeOptions as MergeShardsOptions } from "./merge.ts";
export { verifyModels } from "./verify/verify.ts";
export type { VerifyOptions, VerifyReport } from "./verify/verify.ts";
export { benchModels } from "./verify/bench.ts";
export type { BenchCell, BenchOptions, BenchReport } from "./verify/bench.ts";
export type { Generation } from "./verify/generate.ts";
export type { Metric as VerifyMetric, MetricFigures, MetricModel } from "./verify/metric.ts";
export { RUNTIME_NAMES } from "./verify/table.ts";
export type { RuntimeCell, RuntimeMatrix } from "./verify/matrix.ts";
export type { Parting } from "./verify/parting.ts";
export type { OutputComparison } from "./verify/compare.ts";
export type { Agreement, Figures, Judgement, NoEvidence } from "./verify/judge.ts";
export type { OutputKind } from "./verify/kinds.ts";
export { runtimeTraps } from "./verify/traps.ts";
export type { RuntimeTrap, TrapRuntime } from "./verify/traps.ts";
export type { FeedTensor, Feeds } from "./verify/feeds.ts";
export { ALGORITHMS } from "./algorithms.ts";
export type { Algorithm, AlgorithmInput, AlgorithmName, AlgorithmOptions } from "./algorithm-types.ts";
export { decideWeights } from "./decide.ts";
export type { DecidedWeight, DecideOptions, WeightBasis, WeightDecision } from "./decide.ts";
export { calibrateToFile, mergeStatisticsFiles } from "./calibrate/file.ts";
export type { CalibrateFileOptions, CalibrateFileReport } from "./calibrate/file.ts";
export { calibrateModel, cutModel, modelValues, readFeeds } from "./calibrate/index.ts";
export type {
  BatchValues,
  CalibrateModelOptions,
  CalibrationData,
  CollectOptions,
  FeedsSource,
  InputStatistics,
  ModelCalibration,
  ModelLayerStatistics,
  ReadFeedsOptions,
  RunnerOptions,
  TextSource,
} from "./calibrate/index.ts";
export { floatOperators, integerOnly } from "./integer/index.ts";
export type { IntegerCheck, IntegerOnlyOptions, IntegerOnlyReport } from "./integer/index.ts";
