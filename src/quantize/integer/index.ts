export { addCodes, dyadic, dyadicVector, requantize, type CodeRange, type Dyadic, type DyadicVector } from "./dyadic.ts";
export { shiftGelu, shiftmax, type ShiftGeluOptions, type ShiftmaxOptions } from "./shift.ts";
export { integerLayerNorm, integerNorm, integerSqrt, type IntegerNorm, type IntegerNormInit } from "./norm.ts";
