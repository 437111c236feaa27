// Files, Node only: the parts of disk/ that the rest of the package uses.
export { fileSize, fileSet } from "./disk/read.ts";
export type { FileSet } from "./disk/read.ts";
export { externalFiles } from "./disk/external.ts";
export { DATA_FILES_MAX, checkOutput, dataFileName, fileId, isDataFileName, outputPath, siblingPath } from "./disk/outputs.ts";
export type { OutputRules } from "./disk/outputs.ts";
export { checkAborted, pause, writeFiles } from "./disk/commit.ts";
export type { OutputFile } from "./disk/commit.ts";
export { spillFile } from "./disk/spill.ts";
