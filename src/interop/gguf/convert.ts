// From a GGUF file to a model that can be quantized again.
import type { GgufFile } from "./read.ts";
import type { FloatModel } from "./quantize.ts";

/**
 * The tensors of an opened file as floats, with its metadata. Close the file when the new one is written.
 * @example
 * const model = floatModel(await readGguf("model.gguf"));
 * [...model.tensors.keys()] // ["output.weight"]
 */
export function floatModel(file: GgufFile): FloatModel {
  return {
    metadata: file.metadata,
    tensors: new Map(
      [...file.tensors].map(([name, t]) => [
        name,
        { shape: t.shape, dtype: t.type.name, values: (row?: number, count?: number) => t.values(row, count), bytes: () => t.bytes() },
      ]),
    ),
  };
}
