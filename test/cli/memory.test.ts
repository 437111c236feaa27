// The bound on memory of docs/onnx.md, measured in a process of its own on the built package: GPTQ of a model that is
// much larger than its layers. Needs `npm run build`.
import { spawnSync } from "node:child_process";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";
import { encode, external, graph, model, node, T, value, weights } from "../onnx/build.ts";
import { root, scratch } from "./run.ts";

const place = scratch();
const [K, N, LAYERS] = [256, 4096, 24];
const BYTES = 4 * K * N;

const CHILD = `
const { quantizeModel } = await import(process.argv[1]);
const [path, output, k] = process.argv.slice(2);
const data = Float32Array.from({ length: 64 * k }, (_, i) => Math.sin(i * i));
const feeds = Array.from({ length: 3 }, () => ({ x: { type: "float32", data, dims: [64, Number(k)] } }));
const algorithm = { name: "gptq", damp: 0.05, actOrder: false, polish: false };
const { quantized } = await quantizeModel(path, output, { dtype: "q4", algorithm, calibration: feeds });
console.log(JSON.stringify({ quantized, peak: process.resourceUsage().maxRSS * 1024 }));
`;

test("GPTQ with calibration stays within twice the largest layer and 250 MB", () => {
  const names = Array.from({ length: LAYERS }, (_, i) => i);
  const path = place.path("model.onnx");
  const values = weights(K * N, 1);
  writeFileSync(place.path("model.onnx_data"), Buffer.concat(names.map(() => new Uint8Array(values.buffer))));
  const initializer = names.map((i) =>
    external(`w${i}`, [K, N], { location: "model.onnx_data", offset: String(i * BYTES), length: String(BYTES) }),
  );
  const io = { input: [value("x", T.FLOAT, ["b", K])], output: names.map((i) => value(`y${i}`, T.FLOAT, ["b", N])) };
  const nodes = names.flatMap((i) => [
    node("Tanh", [i === 0 ? "x" : `h${i - 1}`], [`h${i}`]),
    node("MatMul", [`h${i}`, `w${i}`], [`y${i}`], {}, `mm${i}`),
  ]);
  writeFileSync(path, encode(model(graph({ ...io, initializer, node: nodes }))));
  const args = ["--input-type=module", "-e", CHILD, join(root, "dist/esm/onnx.js"), path, place.path("out.onnx"), String(K)];
  const { status, stdout, stderr } = spawnSync(process.execPath, args, { encoding: "utf8" });
  expect(status, stderr).toBe(0);
  const { quantized, peak } = JSON.parse(stdout) as { quantized: number; peak: number };
  expect(quantized).toBe(LAYERS);
  expect(peak).toBeLessThan(2 * BYTES + 250e6);
});
