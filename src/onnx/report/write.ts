// Writes the report of a quantization beside its files. Node only.
import { readModel } from "../file/io.ts";
import { writeFiles } from "../file/files.ts";
import { worstHistograms } from "./histogram.ts";
import type { ReportContent } from "./html.ts";
import { reportHtml } from "./html.ts";

/**
 * Writes the page to `path`; histograms are made of the weights of `content.input`, a path.
 * @throws LowbitError E_EXISTS without `force`, E_IO
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
