// Files, Node only: what the rest of the package uses of src/files/ and disk/.
import type { OutputFile } from "../../files/commit.ts";
import type { Segment } from "./encode.ts";
import { segmentChunks } from "./encode.ts";

export { fileSize, fileSet } from "./disk/read.ts";
export type { FileSet } from "./disk/read.ts";
export { externalFiles } from "./disk/external.ts";
export { DATA_FILES_MAX, dataFileName, isDataFileName, siblingPath } from "./disk/outputs.ts";
export { checkOutput, fileId, outputPath } from "../../files/outputs.ts";
export type { OutputRules } from "../../files/outputs.ts";
export { checkAborted, pause, writeFiles } from "../../files/commit.ts";
export { spillFile } from "./disk/spill.ts";

/** An output that is made of segments. */
export interface SegmentFile extends OutputFile {
  readonly segments: readonly Segment[];
}

export const segmentFile = (path: string, segments: readonly Segment[]): SegmentFile => ({
  path,
  segments,
  chunks: () => segmentChunks(segments),
});
