// npm run bench -- gguf-wllama [type ...]: kjv-llama as GGUF, written by this library, loaded by llama.cpp as
// WebAssembly (@wllama/wllama of bench/peers) in Chromium: what it says of the model, and how it goes on from a few
// words.
import { readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { createRequire } from "node:module";
import { fileURLToPath } from "node:url";
import { ggufBytes, quantizeGguf } from "../src/interop/index.ts";
import { chromiumPath, inChromium } from "./chromium.ts";
import { loadKjv } from "./gguf-kjv.ts";
import { kjvModel } from "./gguf-llama.ts";

const TYPES = ["f16", "q8_0", "q4_0", "q4_k", "q6_k", "mxfp4"];

const page = `<!doctype html><script type="module">
import { Wllama } from "./index.js";
window.tryModel = async (name) => {
  const wllama = new Wllama({ default: new URL("wllama.wasm", location.href).href }, { logger: { debug() {}, log() {}, warn() {}, error: console.error } });
  await wllama.loadModel([await (await fetch(name)).blob()], { n_ctx: 256, n_threads: 1 });
  const { choices } = await wllama.createCompletion({ prompt: "In the beginning", max_tokens: 12, temperature: 0 });
  const said = { ...wllama.getModelMetadata().hparams, text: choices[0].text };
  await wllama.exit();
  return said;
};
window.ready = true;
</script>`;

export async function ggufWllama(args: readonly string[]): Promise<void> {
  const kjv = loadKjv();
  if (kjv === null) throw new Error("kjv-llama is not beside the project (LOWBIT_MODELS)");
  const chromium = chromiumPath("gguf-wllama");
  const types = args.length > 0 ? args : TYPES;
  const peers = join(dirname(fileURLToPath(import.meta.url)), "peers", "package.json");
  const root = dirname(createRequire(peers).resolve("@wllama/wllama"));
  const model = kjvModel(kjv);
  const files: Record<string, string | Uint8Array> = {
    "index.html": page,
    "wllama.wasm": readFileSync(join(root, "wasm", "wllama.wasm")),
  };
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
