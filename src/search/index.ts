// lowbit/search: exact search over packed vectors. `createIndex` packs vectors into any format of the library and finds
// the nearest to a query by cosine, dot or euclidean; a first stage in few bits may propose candidates for a second one
// in more. docs/search.md is the guide.
export { comparePrecisions, paretoSvg, type CompareOptions, type Comparison, type Trial } from "./compare.ts";
export { createIndex, type SearchIndex } from "./create.ts";
export { indexFromBytes } from "./file.ts";
export { idBitmap } from "./ids.ts";
export { mergeResults, type MergeOptions as MergeResultsOptions } from "./merge.ts";
export { fitProjection } from "./projection.ts";
export type { Fit, IndexOptions, Metric, Precision, Projection, SearchOptions, SearchResult } from "./types.ts";
