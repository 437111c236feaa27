// One runtime of the decode bench, in a process of its own: loads the model and answers measurements over IPC. Arguments: its name, the model.
import { readFileSync } from "node:fs";
import { QWEN_LIKE } from "./decode-model.ts";

/** What is measured: milliseconds of a prompt, or of each of some steps after a context. */
export interface Ask {
  readonly kind: "prefill" | "decode";
  readonly context: number;
  readonly steps: number;
}

/** The least that a runtime must do for the bench: tokens onto what came before; the next token. */
interface Peer {
  reset(): void;
  run(ids: readonly number[]): Promise<number>;
  /** Milliseconds of one step by kind of operator, where the runtime tells. */
  profile?(): Record<string, number>;
}

async function lowbit(path: string): Promise<Peer> {
  const { loadModel, greedy } = await import("../src/runtime/index.ts");
  const session = await loadModel(path, { profile: true });
  const decoder = session.decoder({ capacity: 2048 });
  return {
    reset: () => decoder.reset(),
    run: (ids) => Promise.resolve(greedy(ids.length === 1 ? decoder.step(ids[0]) : decoder.prefill(ids))),
    profile: () => Object.fromEntries(decoder.explain().map(({ operator, ms = 0 }) => [operator, ms])),
  };
}

/** Both onnxruntimes: caches go in and out as tensors. */
async function onnxruntime(path: string, isWeb: boolean): Promise<Peer> {
  const ort = isWeb ? await import("onnxruntime-web") : await import("onnxruntime-node");
  if (isWeb) ort.env.wasm.numThreads = 1;
  const source = isWeb ? new Uint8Array(readFileSync(path)) : path;
  const session = await ort.InferenceSession.create(source as string, { intraOpNumThreads: 1, interOpNumThreads: 1, logSeverityLevel: 3, executionProviders: [isWeb ? "wasm" : "cpu"] }); // prettier-ignore
  const { layers, kvHeads, size, vocabulary } = QWEN_LIKE;
  let total = 0;
  let past: Record<string, unknown> = {};
  const reset = (): void => {
    total = 0;
    past = {};
    for (let i = 0; i < 2 * layers; i++)
      past[`past_key_values.${i >> 1}.${i & 1 ? "value" : "key"}`] = new ort.Tensor("float32", new Float32Array(0), [1, kvHeads, 0, size]);
  };
  reset();
  return {
    reset,
    async run(ids) {
      total += ids.length;
      const out = await session.run({
        input_ids: new ort.Tensor("int64", BigInt64Array.from(ids, BigInt), [1, ids.length]),
        attention_mask: new ort.Tensor("int64", new BigInt64Array(total).fill(1n), [1, total]),
        ...past,
      } as never);
      const { logits, ...present } = out as unknown as Record<string, { data: Float32Array }>;
      past = Object.fromEntries(Object.entries(present).map(([name, value]) => [name.replace("present", "past_key_values"), value]));
      const last = logits.data.subarray(-vocabulary);
      let best = 0;
      for (let i = 1; i < last.length; i++) if (last[i] > last[best]) best = i;
      return best;
    },
  };
}

const [name, path] = process.argv.slice(2);
const begin = performance.now();
const peer = name === "lowbit" ? await lowbit(path) : await onnxruntime(path, name === "onnxruntime-web");
const loadMs = performance.now() - begin;
await peer.run([1]);
const firstMs = performance.now() - begin;
peer.reset();
const tokens = (count: number): number[] => Array.from({ length: count }, (_, i) => (i * 7919 + 3) % QWEN_LIKE.vocabulary);

process.on("message", (ask: Ask) => {
  void (async () => {
    const times: number[] = [];
    peer.reset();
    const start = performance.now();
    let id = await peer.run(tokens(ask.context));
    if (ask.kind === "prefill") times.push(performance.now() - start);
    const ids = [id];
    if (ask.kind === "decode")
      for (let i = 0; i < ask.steps; i++) {
        const from = performance.now();
        id = await peer.run([id]);
        times.push(performance.now() - from);
        ids.push(id);
      }
    process.send!({
      times,
      ids,
      profile: ask.kind === "decode" ? peer.profile?.() : undefined,
      peakMB: process.resourceUsage().maxRSS / 1024,
    });
  })();
});
process.send!({ loadMs, firstMs, peakMB: process.resourceUsage().maxRSS / 1024 });
