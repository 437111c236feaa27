// Perplexity of a causal model (ids int64 [B, T] -> logits [B, T, V]) over windows of 256 tokens, by onnxruntime-node.
import { InferenceSession, Tensor } from "onnxruntime-node";

const WINDOW = 256;
const BATCH = 4;

type Run = (ids: BigInt64Array, dims: readonly number[]) => Promise<Float32Array>;

/**
 * exp of the mean negative log likelihood of the token after each position (the last one of a window is the first of
 * the next), by whatever makes logits [B, T, V] of ids [B, T].
 */
export async function perplexityOf(run: Run, tokenBytes: Uint8Array, windows: number): Promise<number> {
  const tokens = new Uint16Array(tokenBytes.buffer.slice(tokenBytes.byteOffset, tokenBytes.byteOffset + tokenBytes.byteLength));
  let loss = 0;
  let count = 0;
  const most = Math.min(windows, Math.floor((tokens.length - 1) / WINDOW));
  for (let first = 0; first < most; first += BATCH) {
    const batch = Math.min(BATCH, most - first);
    const ids = BigInt64Array.from({ length: batch * WINDOW }, (_, i) => BigInt(tokens[first * WINDOW + i]));
    const data = await run(ids, [batch, WINDOW]);
    const vocabulary = data.length / ids.length;
    for (let i = 0; i < batch * WINDOW; i++) {
      const row = data.subarray(i * vocabulary, (i + 1) * vocabulary);
      let top = -Infinity;
      for (const value of row) if (value > top) top = value;
      let sum = 0;
      for (const value of row) sum += Math.exp(value - top);
      loss += Math.log(sum) + top - row[tokens[first * WINDOW + i + 1]];
      count++;
    }
  }
  return Math.exp(loss / count);
}

/** `perplexityOf` a file in onnxruntime-node. */
export async function perplexity(path: string, tokenBytes: Uint8Array, windows: number): Promise<number> {
  const session = await InferenceSession.create(path, { logSeverityLevel: 4 });
  try {
    return await perplexityOf(
      async (ids, dims) => (await session.run({ ids: new Tensor("int64", ids, dims) })).logits.data as Float32Array,
      tokenBytes,
      windows,
    );
  } finally {
    await session.release();
  }
}
