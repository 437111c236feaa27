export { addCodes, dyadic, dyadicVector, requantize, type CodeRange, type Dyadic, type DyadicVector } from "./dyadic.ts";
export { shiftGelu, shiftmax, type ShiftGeluOptions, type ShiftmaxOptions } from "./shift.ts";
export { integerLayerNorm, integerNorm, integerSqrt, type IntegerNorm, type IntegerNormInit } from "./norm.ts";
export { log2Format, quantizeTokens, splitOutliers, type OutlierCodes, type TokenCodes } from "./low-bit.ts";
export {
  absmeanTernary,
  hammingScores,
  packSigns,
  planMixture,
  shiftProduct,
  ternaryProduct,
  type Mixture,
  type MixtureOptions,
  type Primitive,
  type ShiftWeights,
} from "./shifts.ts";
