// placeModel: placeWeights from a model file to another (Node).
import { checkAborted, checkOutput, spillFile, writeFiles } from "../file/files.ts";
import { checkOutputs, inputPaths, outputFiles, readModel, type WriteOptions } from "../file/io.ts";
import { decodeOriginal } from "../file/model.ts";
import { placeWeights, type ForeignWeights, type PlaceOptions, type PlaceReport } from "./index.ts";

/** New tensors stay in memory up to this many bytes, then go to a temporary file beside the output. */
const MEMORY_BUDGET = 96 << 20;

/**
 * Puts the packed layers of a checkpoint into the model file `input` and writes `output`, which appears whole or not at
 * all; the input is only read. Node only.
 * @throws LowbitError E_IO, E_EXISTS, E_ONNX where nothing matches, E_ABORTED
 * @example const report = await placeModel("model.onnx", "model_gptq.onnx", await importCheckpoint("Llama-GPTQ"));
 */
export async function placeModel(
  input: string,
  output: string,
  weights: ForeignWeights,
  options: PlaceOptions & WriteOptions = {},
): Promise<PlaceReport> {
  checkAborted(options.signal);
  const { force = false, followLinks = true } = options;
  const source = readModel(input);
  const spill = spillFile(output, MEMORY_BUDGET);
  try {
    const model = { ...source, proto: decodeOriginal(source) };
    checkOutput(output, inputPaths(model), { force, followLinks });
    model.payloads.keep = spill.keep;
    const report = await placeWeights(model, weights, options);
    const outputs = outputFiles(model, output, options);
    checkOutputs(outputs, model, { force, followLinks });
    await writeFiles(outputs, force, options.signal);
    return report;
  } finally {
    spill.close();
    source.close();
  }
}
