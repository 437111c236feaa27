// lowbit/formats: every named format, lookup by name, the builders, bulk conversion and packing.
export * from "./all.ts";
export { allFormats, format, type FormatName, type FormatOf } from "./registry.ts";
export * from "./define/index.ts";
export { arithmetic, type Accumulator, type Arithmetic } from "./core/arithmetic.ts";
export { encodeArray, decodeArray } from "./core/bulk.ts";
export type { TestVector, VectorOperation, VectorOptions } from "./core/test-vectors.ts";
export { valueTable, type ValueTableKind } from "./core/value-table.ts";
export { bitCard, explainCode, explainValue, type BitCard, type CodeExplanation, type ValueExplanation } from "./core/explain.ts";
export { dotBitPlanes, fromBitPlanes, toBitPlanes, type BitAlphabet, type BitPlanes } from "./core/bitplanes.ts";
export { packCodes, unpackCodes, packedBytes, type Codes } from "./core/pack.ts";
export { LowbitError, isLowbitError, type LowbitErrorCode } from "./core/errors.ts";
export type * from "./core/types.ts";
