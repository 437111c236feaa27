// Writes the report of a quantization beside its files. Node only.
import { LowbitError } from "../../../formats/core/errors.ts";
import { checkOutput, dataFileName, isDataFileName, outputPath, writeFiles } from "../file/files.ts";
import { inputPaths, readModel } from "../file/io.ts";
import type { OnnxModel } from "../file/model.ts";
import { nodePath } from "../../files/calls.ts";
import { worstHistograms } from "./histogram.ts";
import type { ReportContent } from "./html.ts";
import { reportHtml } from "./html.ts";

/**
 * Checks, before the work, that the page may be written: over no file that `model` was read from, and not where
 * the quantized model or its data will be.
 * @throws LowbitError E_EXISTS, E_IO
 */
export function checkReport(path: string, model: OnnxModel, output: string, force = false): void {
  checkOutput(path, inputPaths(model), force);
  const { basename, dirname, resolve } = nodePath();
  const [page, written] = [resolve(outputPath(path)), resolve(outputPath(output))];
  if (page === written || (dirname(page) === dirname(written) && isDataFileName(written, basename(page))))
    throw new LowbitError(
      "E_EXISTS",
      `${path}: expected another file than the quantized model and its data (${basename(written)}, ${dataFileName(written)}), got one of them. Choose another name for the report.`,
    );
}

/**
 * Writes the page to `path`; histograms are made of the weights of `content.input`, a path.
 * @throws LowbitError E_EXISTS without `force`, E_IO
 * @example
 * const report = await quantizeModel("model.onnx", "model_q8.onnx", { dtype: "q8" });
 * await writeReport("report.html", { input: "model.onnx", report, recipe: { dtype: "q8" } });
 */
export async function writeReport(path: string, content: ReportContent, force = false): Promise<void> {
  const model = readModel(content.input);
  let page: string;
  try {
    page = reportHtml({ ...content, histograms: worstHistograms(model, content.report.layers) });
  } finally {
    model.close();
  }
  const bytes = new TextEncoder().encode(page);
  await writeFiles([{ path, chunks: () => [bytes] }], force);
}
