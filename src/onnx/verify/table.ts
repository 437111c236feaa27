// The runtimes that verification knows. A new one is a row and a `start`.
import { findChromium, startBrowser } from "./browser.ts";
import { ownRuntime, startNode, startOwn, startWeb, webBuilds } from "./children.ts";
import { requirePackage } from "./process.ts";
import type { RuntimeEntry } from "./runtimes.ts";

const checkNode = (): void => void requirePackage("onnxruntime-node");
const checkBrowser = (): void => {
  webBuilds();
  findChromium();
};

export const RUNTIMES: readonly RuntimeEntry[] = [
  {
    name: "node",
    about: "onnxruntime-node, optimisation level all",
    check: checkNode,
    start: ({ fresh }) => startNode("node", "all", fresh ?? false),
  },
  {
    name: "node-disabled",
    about: "onnxruntime-node, optimisation level disabled",
    check: checkNode,
    start: () => startNode("node-disabled", "disabled", true),
  },
  { name: "web", about: "onnxruntime-web, WebAssembly in Node", check: () => void webBuilds(), start: startWeb },
  {
    name: "webgpu-native",
    about: "onnxruntime-web, WebGPU in headless Chromium, build ort.webgpu",
    check: checkBrowser,
    start: () => startBrowser("webgpu-native", "ort.webgpu.min.mjs"),
  },
  {
    name: "webgpu-jsep",
    about: "onnxruntime-web, WebGPU in headless Chromium, build ort.all (JSEP)",
    check: checkBrowser,
    start: () => startBrowser("webgpu-jsep", "ort.all.min.mjs"),
  },
  { name: "lowbit", about: "lowbit/runtime, WebAssembly in Node", check: () => void ownRuntime(), start: startOwn },
];

/** Names that stand for several. */
const GROUPS: ReadonlyMap<string, readonly string[]> = new Map([["webgpu", ["webgpu-native", "webgpu-jsep"]]]);

/** Names that `runtimes` takes. */
export const RUNTIME_NAMES: readonly string[] = [...RUNTIMES.map((entry) => entry.name), ...GROUPS.keys()];

/** The row of a name. @throws RangeError */
export function runtimeEntry(name: string): RuntimeEntry {
  const found = RUNTIMES.find((entry) => entry.name === name);
  if (found === undefined) throw new RangeError(`runtimes: expected some of ${RUNTIME_NAMES.join(", ")}, got ${JSON.stringify(name)}`);
  return found;
}

/** The rows of names, each once; "webgpu" is both builds. @throws RangeError, TypeError */
export function runtimeEntries(names: readonly string[]): RuntimeEntry[] {
  if (!Array.isArray(names) || names.length === 0)
    throw new TypeError(`runtimes: expected a list of ${RUNTIME_NAMES.join(", ")}, got ${JSON.stringify(names) ?? "none"}`);
  return [...new Set(names.flatMap((name) => GROUPS.get(name) ?? [name]))].map(runtimeEntry);
}
