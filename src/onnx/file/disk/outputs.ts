// What data files are called. Names follow from the name of the output alone, never from the model.
import { nodePath } from "../../../files/calls.ts";

/** Files of external data that transformers.js loads for one model. */
export const DATA_FILES_MAX = 100;

/**
 * Name of an external data file that belongs to a model file (the convention of transformers.js): x.onnx_data,
 * x.onnx_data_1, ...
 */
export const dataFileName = (modelPath: string, index = 0): string =>
  `${nodePath().basename(modelPath)}_data${index === 0 ? "" : `_${index}`}`;

/** True for a name that `dataFileName` gives. */
export function isDataFileName(modelPath: string, name: string): boolean {
  const own = dataFileName(modelPath);
  return name === own || (name.startsWith(`${own}_`) && /^[1-9]\d?$/.test(name.slice(own.length + 1)));
}

export const siblingPath = (modelPath: string, name: string): string => nodePath().join(nodePath().dirname(modelPath), name);
