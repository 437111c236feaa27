// npm run bench -- gguf-wllama [type ...]: kjv-llama as GGUF, written by this library, loaded by llama.cpp as
// WebAssembly (@wllama/wllama of bench/peers) in Chromium: what it says of the model, and how it goes on from a few
// words.
import { ggufBytes, quantizeGguf } from "../src/interop/index.ts";
import { chromiumPath, inChromium } from "./chromium.ts";
import { loadKjv } from "./gguf-kjv.ts";
import { kjvModel } from "./gguf-llama.ts";
import { wllamaPage } from "./wllama.ts";

const TYPES = ["f16", "q8_0", "q4_0", "q4_k", "q6_k", "mxfp4"];

const script = `window.tryModel = async (file) => {
  const wllama = await open(file, 256);
  const { choices } = await wllama.createCompletion({ prompt: "In the beginning", max_tokens: 12, temperature: 0 });
  const said = { ...wllama.getModelMetadata().hparams, text: choices[0].text };
  await wllama.exit();
  return said;
};`;

export async function ggufWllama(args: readonly string[]): Promise<void> {
  const kjv = loadKjv();
  if (kjv === null) throw new Error("kjv-llama is not beside the project (LOWBIT_MODELS)");
  const chromium = chromiumPath("gguf-wllama");
  const types = args.length > 0 ? args : TYPES;
  const { root, files: page } = wllamaPage(script);
  const files = { ...page };
  const model = kjvModel(kjv);
  for (const type of types) files[`${type}.gguf`] = await ggufBytes(quantizeGguf(model, { type, pure: true }));
  await inChromium(chromium, root, files, "plain/index.html", async (tab) => {
    for (const type of types) {
      const said = (await tab.evaluate(`window.tryModel("${type}.gguf")`)) as Said;
      console.log(`${type.padEnd(6)} ${said.nLayer} layers of ${said.nEmbd}, ${said.nVocab} tokens: "In the beginning${said.text}"`);
    }
  });
}

interface Said {
  readonly nVocab: number;
  readonly nEmbd: number;
  readonly nLayer: number;
  readonly text: string;
}
