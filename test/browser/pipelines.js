// In a page: pipelines of transformers.js from folders on this server, as they are and with lowbit/transformers.
import { env, pipeline, RawImage } from "@huggingface/transformers";
import * as ort from "onnxruntime-web/webgpu";
import { ready, settings, uninstall } from "../../src/runtime/transformers.ts";

env.allowRemoteModels = false;
env.allowLocalModels = true;
env.localModelPath = "models/";
env.useBrowserCache = false;
env.useWasmCache = false;
env.backends.onnx.wasm.wasmPaths = new URL("ort/", globalThis.location.href).href;
env.backends.onnx.wasm.numThreads = 1;

const noise = (count, low, high) => {
  let state = 5;
  return Float32Array.from({ length: count }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return low + ((high - low) * state) / 2 ** 32;
  });
};
const sound = noise(8000, -0.5, 0.5).map((v, i) => v * Math.sin(i / 40));
const image = new RawImage(Uint8ClampedArray.from(noise(24 * 24 * 3, 0, 255)), 24, 24, 3);

const PIPELINES = {
  "feature-extraction": ["features", (run) => run(["w5 w9 w30", "w7 w8"], { pooling: "mean", normalize: true })],
  "text-classification": ["classes", (run) => run(["w5 w9 w30", "w61 w3"], { top_k: 3 })],
  "text-generation": ["language", (run) => run("w7 w30 w12", { max_new_tokens: 8, do_sample: false })],
  "automatic-speech-recognition": ["speech", (run) => run(sound)],
  "automatic-speech-recognition by Whisper": ["whisper", (run) => run(sound, { max_new_tokens: 12 })],
  "image-classification": ["images", (run) => run(image, { top_k: 5 })],
};

/** Every leaf of a result by its path, numbers as numbers. */
function leaves(of, path = "") {
  if (of?.ort_tensor !== undefined) return leaves({ dims: [...of.dims], data: of.data }, path);
  if (ArrayBuffer.isView(of)) return Array.from(of, (v, i) => [`${path}.${i}`, Number(v)]);
  if (typeof of !== "object" || of === null) return [[path, of]];
  return Object.entries(of).flatMap(([key, inner]) => leaves(inner, `${path}.${key}`));
}

/** Runs one pipeline. Says which of its sessions are this runtime's. */
async function once(task) {
  const [folder, call] = PIPELINES[task];
  const made = [];
  const create = ort.InferenceSession.create;
  ort.InferenceSession.create = async (...args) => {
    const session = await create.apply(ort.InferenceSession, args);
    made.push(session.handler.constructor === Object ? "lowbit" : "onnxruntime");
    return session;
  };
  try {
    const run = await pipeline(task.split(" ")[0], folder, { dtype: "fp32" });
    const result = leaves(await call(run));
    const start = performance.now();
    await call(run);
    const ms = performance.now() - start;
    await run.dispose();
    return { made, result, ms };
  } finally {
    ort.InferenceSession.create = create;
  }
}

/** All pipelines, first here, then in onnxruntime-web: what differs, by pipeline. */
export async function compare() {
  const said = [];
  settings.say = (message) => said.push(message);
  await ready;
  const own = {};
  for (const task of Object.keys(PIPELINES)) own[task] = await once(task);
  uninstall();
  const out = {};
  for (const task of Object.keys(PIPELINES)) {
    const other = await once(task);
    const mine = own[task];
    const differ = other.result.filter(([path, v], i) => {
      const [at, got] = mine.result[i] ?? [];
      return at !== path || (typeof v === "number" ? !(Math.abs(v - got) < 1e-4) : v !== got);
    });
    out[task] = { made: mine.made, other: other.made, leaves: other.result.length, differ, ms: [mine.ms, other.ms] };
  }
  return { said, pipelines: out };
}
globalThis.compare = compare;
