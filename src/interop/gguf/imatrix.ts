// Importance matrices of llama-imatrix as GGUF: mean squares of what each column of a matrix is multiplied with.
// Spec: llama.cpp tools/imatrix: tensors `<name>.in_sum2` [matrices, k] and `<name>.counts` [matrices, 1], general.type
// "imatrix".
import { LowbitError } from "../../../formats/core/errors.ts";
import type { ByteSource } from "../source.ts";
import { readGguf } from "./read.ts";

const SUMS = ".in_sum2";

/**
 * Importance by tensor name, for `quantizeGguf`. Experts of one tensor are averaged.
 * @throws LowbitError E_CONTAINER for files that are none
 * @example
 * const importance = await readImatrix("imatrix.gguf"); // of llama-imatrix
 * quantizeGguf(floatModel(await readGguf("model.gguf")), { type: "q4_k_m", importance })
 */
export async function readImatrix(source: ByteSource): Promise<Map<string, Float32Array>> {
  const file = await readGguf(source);
  try {
    const out = new Map<string, Float32Array>();
    for (const [name, sums] of file.tensors) {
      if (!name.endsWith(SUMS)) continue;
      const of = name.slice(0, -SUMS.length);
      const counts = await file.tensors.get(`${of}.counts`)?.values();
      const values = await sums.values();
      const k = sums.shape[sums.shape.length - 1];
      if (counts === undefined || counts.length * k !== values.length)
        throw new LowbitError(
          "E_CONTAINER",
          `imatrix ${of}: expected a count for each of its ${values.length / k} matrices, got ${counts?.length ?? "none"}.`,
        );
      const total = counts.reduce((a, b) => a + b, 0);
      const mean = new Float32Array(k);
      for (let i = 0; i < values.length; i++) mean[i % k] += values[i] / (total || 1);
      out.set(of, mean);
    }
    if (out.size === 0)
      throw new LowbitError("E_CONTAINER", `imatrix: expected tensors named *${SUMS}, got none. Make it with llama-imatrix (GGUF).`);
    return out;
  } finally {
    await file.close();
  }
}
