// One runtime of the decode bench in a process of its own, from built packages and without a loader of TypeScript,
// whose memory and time would count: loads the model and answers measurements over IPC. Argument: JSON of `Start` in
// decode.ts.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";

const here = fileURLToPath(new URL(".", import.meta.url));
const start = JSON.parse(process.argv[2]);
const { vocabulary, layers, kvHeads, size } = start.sizes;

/** A package of the main install or of bench/peers. */
async function load(name) {
  for (const base of [here, join(here, "peers"), process.env.LOWBIT_PEERS ?? ""])
    try {
      return await import(pathToFileURL(createRequire(join(base, "package.json")).resolve(name)).href);
    } catch (error) {
      if (!["MODULE_NOT_FOUND", "ERR_PACKAGE_PATH_NOT_EXPORTED"].includes(error.code)) throw error;
    }
  // packages with an entry for `import` only
  return import(pathToFileURL(join(process.env.LOWBIT_PEERS ?? join(here, "peers"), "node_modules", name, "dist", "index.js")).href);
}

/**
 * A runtime: { reset(), run(ids) -> the likeliest next token (a promise or not), profile? }, made by the function that
 * its import gives.
 */
const RUNTIMES = {
  async lowbit() {
    const { loadModel, greedy } = await import("../dist/esm/runtime.js");
    return async () => {
      const backend = start.threads > 1 ? await (await import("../dist/esm/index.js")).wasm({ threads: start.threads }) : "wasm";
      const session = await loadModel(start.onnx, { backend, profile: start.profile === true });
      const decoder = session.decoder({ capacity: start.capacity, ...(start.cache === undefined ? {} : { cache: start.cache }) });
      return {
        reset: () => decoder.reset(),
        run: (ids) => greedy(ids.length === 1 ? decoder.step(ids[0]) : decoder.prefill(ids)),
        profile: () => Object.fromEntries(decoder.explain().map(({ operator, ms = 0 }) => [operator, ms])),
      };
    };
  },
  "onnxruntime-node": async () => onnxruntime(await load("onnxruntime-node"), start.onnx, "cpu"),
  async "onnxruntime-web"() {
    const ort = await load("onnxruntime-web");
    ort.env.wasm.numThreads = start.threads;
    return onnxruntime(ort, undefined, "wasm");
  },
  async "node-llama-cpp"() {
    const { getLlama } = await load("node-llama-cpp");
    return async () => {
      const llama = await getLlama({ gpu: false, build: "never", skipDownload: true, logLevel: "error" });
      const model = await llama.loadModel({ modelPath: start.gguf });
      const context = await model.createContext({ contextSize: start.capacity, batchSize: 256, threads: start.threads });
      const sequence = context.getSequence();
      let going = null;
      return {
        async reset() {
          await going?.return();
          going = null;
          await sequence.clearHistory();
        },
        // a generation goes on by itself: the tokens of a step are those that it gave
        async run(ids) {
          if (going === null || ids.length > 1) {
            await going?.return();
            going = sequence.evaluate(ids, { temperature: 0, yieldEogToken: true });
          }
          return (await going.next()).value;
        },
      };
    };
  },
};

/** Both onnxruntimes: caches go in and out as tensors. */
function onnxruntime(ort, path, provider) {
  return async () => {
    const session = await ort.InferenceSession.create(path ?? new Uint8Array(readFileSync(start.onnx)), {
      intraOpNumThreads: start.threads,
      interOpNumThreads: 1,
      logSeverityLevel: 3,
      executionProviders: [provider],
    });
    let total = 0;
    let past = {};
    const names = Array.from({ length: 2 * layers }, (_, i) => `past_key_values.${i >> 1}.${i & 1 ? "value" : "key"}`);
    const reset = () => {
      total = 0;
      const isInt8 = start.cache === "int8";
      const empty = () =>
        new ort.Tensor(isInt8 ? "int8" : "float32", isInt8 ? new Int8Array(0) : new Float32Array(0), [1, kvHeads, 0, size]);
      past = Object.fromEntries(names.map((name) => [name, empty()]));
    };
    reset();
    return {
      reset,
      async run(ids) {
        total += ids.length;
        const { logits, ...present } = await session.run({
          input_ids: new ort.Tensor("int64", BigInt64Array.from(ids, BigInt), [1, ids.length]),
          attention_mask: new ort.Tensor("int64", new BigInt64Array(total).fill(1n), [1, total]),
          ...past,
        });
        past = Object.fromEntries(Object.entries(present).map(([name, value]) => [name.replace("present", "past_key_values"), value]));
        const last = logits.data.subarray(-vocabulary);
        let best = 0;
        for (let i = 1; i < last.length; i++) if (last[i] > last[best]) best = i;
        return best;
      },
    };
  };
}

const from = performance.now();
const open = await RUNTIMES[start.name]();
const begin = performance.now();
const peer = await open();
const loadMs = performance.now() - begin;
await peer.run([1]);
const firstMs = performance.now() - begin;
await peer.reset();
const tokens = (count) => Array.from({ length: count }, (_, i) => (i * 7919 + 3) % vocabulary);
const peakMB = () => process.resourceUsage().maxRSS / 1024;

process.on("message", (ask) => {
  void (async () => {
    const times = [];
    await peer.reset();
    const beginning = performance.now();
    let id = await peer.run(tokens(ask.context));
    if (ask.kind === "prefill") times.push(performance.now() - beginning);
    const ids = [id];
    if (ask.kind === "decode")
      for (let i = 0; i < ask.steps; i++) {
        const before = performance.now();
        id = await peer.run([id]);
        times.push(performance.now() - before);
        ids.push(id);
      }
    process.send({ times, ids, peakMB: peakMB(), ...(start.profile === true && ask.kind === "decode" ? { profile: peer.profile() } : {}) });
  })();
});
process.send({ times: [], ids: [], loadMs, firstMs, importMs: begin - from, peakMB: peakMB() });
