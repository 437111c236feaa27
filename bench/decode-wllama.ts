// npm run bench -- decode-wllama: the decoder of `decode` at context 256 on one thread, beside llama.cpp as WebAssembly
// (@wllama/wllama of bench/peers) in Chromium, by turns: wllama on Q4_0 (the same codes) and on Q4_K, which its kernels
// are best at, this runtime in this process. wllama hands tokens over in bursts: what counts is the mean of a round, best
// and median of the rounds.
import { readFileSync } from "node:fs";
import { ggufBytes, quantizeGguf, readGguf } from "../src/interop/index.ts";
import { greedy, loadModel } from "../src/runtime/index.ts";
import { chromiumPath, inChromium } from "./chromium.ts";
import { modelFiles } from "./decode.ts";
import { wllamaPage } from "./wllama.ts";

const [CONTEXT, STEPS, ROUNDS] = [256, 24, 4];

const script = `const models = new Map();
window.decode = async (file) => {
  if (!models.has(file)) models.set(file, await open(file, 512));
  const times = [];
  await models.get(file).createCompletion({
    prompt: Array.from({ length: ${CONTEXT} }, (_, i) => String.fromCharCode(97 + (i * 7) % 26)).join(""),
    max_tokens: ${STEPS}, temperature: 0, ignore_eos: true, stream: true,
    onData: () => times.push(performance.now()),
  });
  return (times.at(-1) - times[0]) / (times.length - 1);
};`;

const sorted = (times: readonly number[]): number[] => [...times].sort((a, b) => a - b);

export async function decodeWllama(): Promise<void> {
  const chromium = chromiumPath("decode-wllama");
  const { root, files: page } = wllamaPage(script);
  const { onnx, gguf } = await modelFiles(undefined);
  const q4 = new Uint8Array(readFileSync(gguf));
  const coded = await readGguf(q4);
  const model = {
    metadata: coded.metadata,
    tensors: new Map([...coded.tensors].map(([name, { shape, values }]) => [name, { shape, dtype: "F32", values }])),
  };
  const files = {
    ...page,
    "q4_0.gguf": q4,
    "q4_k.gguf": await ggufBytes(quantizeGguf(model, { type: "q4_k", pure: true })),
  };
  const session = await loadModel(onnx);
  const decoder = session.decoder({ capacity: 512 });
  const own: number[] = [];
  const found = new Map<string, number[]>([
    ["q4_0", []],
    ["q4_k", []],
  ]);
  await inChromium(chromium, root, files, "plain/index.html", async (tab) => {
    for (let round = 0; round < ROUNDS; round++) {
      for (const [type, times] of found) times.push((await tab.evaluate(`window.decode("${type}.gguf")`)) as number);
      decoder.reset();
      let id = greedy(decoder.prefill(Array.from({ length: CONTEXT }, (_, i) => 300 + ((i * 7) % 26))));
      const from = performance.now();
      for (let i = 0; i < STEPS; i++) id = greedy(decoder.step(id));
      own.push((performance.now() - from) / STEPS);
    }
  });
  await session.release();
  const [best, median] = [sorted(own)[0], sorted(own)[own.length >> 1]];
  console.log(`lowbit                best ${best.toFixed(2)} ms a token, median ${median.toFixed(2)}`);
  for (const [type, times] of found) {
    const all = sorted(times);
    const [first, middle] = [all[0], all[all.length >> 1]];
    console.log(`wllama ${type.padEnd(8)} best ${first.toFixed(2)} ms a token, median ${middle.toFixed(2)}: ${(first / best).toFixed(2)} times lowbit's, medians ${(middle / median).toFixed(2)}`); // prettier-ignore
  }
}
