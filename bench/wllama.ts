// llama.cpp as WebAssembly (@wllama/wllama of bench/peers) in a page of Chromium.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

/** The folder of wllama, and a page in it: `script` has `open(file, context)`, a `Wllama` with a model on one thread. */
export function wllamaPage(script: string): { readonly root: string; readonly files: Readonly<Record<string, string | Uint8Array>> } {
  const peers = process.env.LOWBIT_PEERS ?? fileURLToPath(new URL("peers", import.meta.url));
  const root = dirname(createRequire(join(peers, "package.json")).resolve("@wllama/wllama"));
  const page = `<!doctype html><script type="module">
import { Wllama } from "./index.js";
const open = async (file, context) => {
  const wllama = new Wllama({ default: new URL("wllama.wasm", location.href).href }, { logger: { debug() {}, log() {}, warn() {}, error: console.error } });
  await wllama.loadModel([await (await fetch(file)).blob()], { n_ctx: context, n_threads: 1 });
  return wllama;
};
${script}
window.ready = true;
</script>`;
  return { root, files: { "index.html": page, "wllama.wasm": readFileSync(join(root, "wasm", "wllama.wasm")) } };
}
