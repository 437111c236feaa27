// mergeShards: the shards of a model, made by runs with `shard`, become the file that one run would have written, byte
// for byte.
import { LowbitError } from "../../formats/core/errors.ts";
import { checkOutput } from "./file/files.ts";
import { inputPaths, readModel } from "./file/io.ts";
import type { QuantizeModelOptions, QuantizeReport } from "./options.ts";
import { writeQuantized } from "./quantize.ts";
import { parseRecipe } from "./recipe.ts";
import { identityOf } from "./journal/identity.ts";
import { openShards } from "./journal/runs.ts";
import { logStore } from "./journal/store.ts";

/** What merging shards needs beside their journals. */
export interface MergeOptions extends Pick<QuantizeModelOptions, "force" | "followLinks" | "signal" | "onProgress"> {
  /** Calibration data, where passes or ranges of activations need them and they are not where the shards found them. */
  readonly calibration?: QuantizeModelOptions["calibration"];
}

/**
 * Puts the shards beside `output` together. What only the whole model has (passes, ranges of activations, float16) is
 * made again here.
 * @param input the model that the shards were made of
 * @throws LowbitError E_IO for a missing shard, E_CONTAINER for one that is damaged, unfinished or of another run, by
 * name; else as quantizeModel
 * @example
 * await quantizeModel("model.onnx", "model_q4.onnx", { dtype: "q4", shard: "1/2" }); // each on a machine of its own
 * await quantizeModel("model.onnx", "model_q4.onnx", { dtype: "q4", shard: "2/2" });
 * await mergeShards("model.onnx", "model_q4.onnx");
 */
export async function mergeShards(input: string, output: string, options: MergeOptions = {}): Promise<QuantizeReport> {
  const model = readModel(input);
  try {
    checkOutput(output, inputPaths(model), options);
    const shards = openShards(output);
    try {
      const recipe = parseRecipe(shards.identity.recipe, `${output}: recipe of the shards`);
      const ours = identityOf(model, recipe, null);
      if (ours.model !== shards.identity.model)
        throw new LowbitError("E_CONTAINER", `${input}: expected the model that the shards were made of, got another. Name that model.`);
      if (ours.version !== shards.identity.version)
        throw new LowbitError(
          "E_CONTAINER",
          `${shards.logs[0].path}: expected a shard of version ${ours.version}, got version ${shards.identity.version}. Merge with the version that made them, or make them again.`,
        );
      const store = logStore(shards.logs, { complete: true, remedy: "Make the shards of this model again." });
      return await writeQuantized(model, output, { ...recipe, ...options }, { store });
    } finally {
      shards.close();
    }
  } finally {
    model.close();
  }
}
