// Models on a device: the plan that runs on WebAssembly, on WGSL kernels. Its judge is that plan, which others judge by
// onnxruntime. One session for each kind of model, few sizes: software drivers compile for seconds.
import { afterAll, beforeAll, expect, it } from "vitest";
import { decoderModel, type DecoderSizes } from "../../bench/decode-model.ts";
import type { GpuRoot } from "../../kernels/wgsl/api.ts";
import { gpuRuntime } from "../../src/backends/webgpu/door.ts";
import { webgpu, type WebGpuBackend } from "../../src/backends/webgpu/backend.ts";
import { quantizeModelBytes } from "../../src/onnx/index.ts";
import { loadModel, type RuntimeTensor } from "../../src/runtime/index.ts";
import { encoderFeeds, encoderModel, FORMS } from "../onnx/encoder.ts";
import { SPELLED, spelledModel } from "../runtime/spelled.ts";
import { adapterName, describeGpu, entryPoint } from "./adapter.ts";

type Feeds = Record<string, RuntimeTensor>;

const SIZES: DecoderSizes = { hidden: 64, heads: 4, kvHeads: 2, size: 16, ffn: 96, layers: 2, vocabulary: 160, positions: 64, level: 0 };

/** Noise over signal, rms. */
function distance(wanted: RuntimeTensor, got: RuntimeTensor): number {
  expect([got.type, [...got.dims]]).toEqual([wanted.type, [...wanted.dims]]);
  const [a, b] = [wanted.data, got.data] as [Float32Array, Float32Array];
  let [noise, signal] = [0, 1e-30];
  a.forEach((v, i) => {
    noise += (v - b[i]) ** 2;
    signal += v ** 2;
  });
  return Math.sqrt(noise / signal);
}

const i64 = (dims: number[], of: (i: number) => number): RuntimeTensor => ({
  type: "int64",
  dims,
  data: BigInt64Array.from({ length: dims.reduce((a, b) => a * b, 1) }, (_, i) => BigInt(of(i))),
});

/** `tokens` after `past` others, whose keys and values are waves. */
function decoderFeeds({ layers, kvHeads, size }: typeof SPELLED | DecoderSizes, tokens: number, past: number, positions: boolean): Feeds {
  const cache = (i: number): RuntimeTensor => ({
    type: "float32",
    dims: [1, kvHeads, past, size],
    data: Float32Array.from({ length: kvHeads * past * size }, (_, j) => Math.sin(1.7 * j + i)),
  });
  return {
    input_ids: i64([1, tokens], (i) => (37 * i + 5) % 90),
    attention_mask: i64([1, past + tokens], () => 1),
    ...(positions && { position_ids: i64([1, tokens], (i) => past + i) }),
    ...Object.fromEntries(Array.from({ length: 2 * layers }, (_, i) => [`past_key_values.${i >> 1}.${i & 1 ? "value" : "key"}`, cache(i)])),
  };
}

describeGpu(`models on ${adapterName}`, () => {
  let backend: WebGpuBackend;
  beforeAll(async () => {
    backend = await webgpu({ gpu: (await entryPoint()) as unknown as GpuRoot });
  });
  afterAll(() => backend.dispose());

  /** How the steps ran, by operator. */
  async function check(bytes: Uint8Array, feeds: readonly Feeds[], limit: number): Promise<Map<string, string>> {
    const runtime = gpuRuntime(backend)!;
    const before = runtime.buffers;
    const [judge, session] = await Promise.all([loadModel(bytes), loadModel(bytes, { backend })]);
    let again = 0;
    for (const one of feeds) {
      const wanted = await judge.run(one);
      for (let turn = 0; turn < 2; turn++) {
        const got = await session.run(one);
        expect(Object.keys(got)).toEqual(Object.keys(wanted));
        for (const [name, value] of Object.entries(wanted)) expect(distance(value, got[name]), name).toBeLessThan(limit);
        // a second run finds the buffers of the first
        if (turn === 1) expect(runtime.buffers).toBe(again);
        again = runtime.buffers;
      }
    }
    const how = new Map(session.explain().steps.map(({ operator, kernel }) => [operator, kernel]));
    await Promise.all([judge.release(), session.release()]);
    // what the backend keeps for the next job
    expect(runtime.buffers).toBeLessThanOrEqual(before + 4);
    return how;
  }

  it("a sentence encoder in float32 and in q4", async () => {
    const bytes = encoderModel(FORMS[0]);
    const feeds = encoderFeeds(1, 1) as unknown as Feeds[];
    const how = await check(bytes, feeds, 2e-6);
    expect([...how.values()]).not.toContain("processor");
    expect([...how.keys()]).toContain("lowbit.Attention");
    const { bytes: q4 } = await quantizeModelBytes(bytes, { dtype: "q4" });
    expect([...(await check(q4, feeds, 2e-6)).values()]).not.toContain("processor");
  }, 120_000);

  it("a decoder with GroupQueryAttention and packed weights", async () => {
    const bytes = decoderModel(SIZES);
    const how = await check(bytes, [decoderFeeds(SIZES, 7, 3, false)], 2e-6);
    expect(how.get("com.microsoft.GroupQueryAttention")).toBe("kernel");
    expect([...how.values()]).not.toContain("processor");
  }, 120_000);

  it("a decoder whose attention is spelled out", async () => {
    const how = await check(spelledModel(), [decoderFeeds(SPELLED, 5, 4, true)], 2e-6);
    expect(how.get("lowbit.Attention")).toBe("kernel");
    expect(how.get("lowbit.Rotary")).toBe("kernel");
  }, 120_000);
});
