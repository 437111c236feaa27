/* global fetch, location */
// The page of serve.mjs.
import * as tf from "@tensorflow/tfjs-core";
import "@tensorflow/tfjs-layers"; // registers the gradients of tfjs
import { setWasmPaths } from "@tensorflow/tfjs-backend-wasm";
import { letters } from "./adapt.mjs";

const [out, state] = ["out", "state"].map((id) => document.getElementById(id));
const log = (line) => {
  out.append(`${line}\n`);
  console.log(line);
};
try {
  setWasmPaths(new URL("./", location.href).href);
  await tf.setBackend("wasm");
  const texts = await Promise.all(["known.txt", "other.txt"].map(async (name) => (await fetch(name)).text()));
  await letters({ texts, log, ...(location.search === "?quick" ? { baseSteps: 2, steps: 2, windows: 1 } : {}) });
  state.textContent = "done";
} catch (error) {
  state.textContent = `failed: ${error.message}`;
}
