// Does a model load and run in onnxruntime-node? What it says where it does not.
import { InferenceSession, Tensor } from "onnxruntime-node";

const ARRAYS: ReadonlyMap<string, (n: number) => Tensor["data"]> = new Map<string, (n: number) => Tensor["data"]>([
  ["float32", (n) => new Float32Array(n).fill(0.5)],
  ["float64", (n) => new Float64Array(n).fill(0.5)],
  ["float16", (n) => new Uint16Array(n).fill(0x3800)],
  ["int64", (n) => new BigInt64Array(n)],
  ["int32", (n) => new Int32Array(n)],
  ["int8", (n) => new Int8Array(n)],
  ["uint8", (n) => new Uint8Array(n)],
  ["bool", (n) => new Uint8Array(n)],
]);

/** Loads and runs a model on constant inputs; symbolic sizes are 2. */
export async function runs(bytes: Uint8Array): Promise<{ ok: boolean; text: string }> {
  try {
    const session = await InferenceSession.create(bytes, { logSeverityLevel: 4, intraOpNumThreads: 1, interOpNumThreads: 1 });
    try {
      const feeds: Record<string, Tensor> = {};
      for (const meta of session.inputMetadata) {
        if (!meta.isTensor) return { ok: false, text: `${meta.name} is no tensor` };
        const dims = meta.shape.map((d) => (typeof d === "number" && d >= 0 ? d : 2));
        const count = dims.reduce((a, b) => a * b, 1);
        const make = ARRAYS.get(meta.type);
        if (make === undefined || count > 2 ** 20) return { ok: false, text: `${meta.name}: ${count} values of ${meta.type}` };
        feeds[meta.name] = new Tensor(meta.type as "float32", make(count) as Float32Array, dims);
      }
      await session.run(feeds);
    } finally {
      await session.release();
    }
    return { ok: true, text: "" };
  } catch (error) {
    return { ok: false, text: (error as Error).message };
  }
}
