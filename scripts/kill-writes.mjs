// Kills runs of the built command line at random moments while they write a model with external data over an existing
// pair (or where there is none), and looks at what is there: the old pair, the new pair, or (where there was none)
// nothing; and nothing of the killed run after the next one.
//   npm run build && node scripts/kill-writes.mjs [--runs 200] [--seed 1]
import { spawn } from "node:child_process";
import { cpSync, existsSync, mkdirSync, mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { clearInterval, clearTimeout, setInterval, setTimeout } from "node:timers";
import { fileURLToPath, pathToFileURL } from "node:url";
import { parseArgs } from "node:util";

const root = fileURLToPath(new URL("..", import.meta.url));
const { quantizeModel, readModel } = await import(pathToFileURL(join(root, "dist/esm/onnx.js")).href);
const { values } = parseArgs({ options: { runs: { type: "string", default: "200" }, seed: { type: "string", default: "1" } } });
const runs = Number(values.runs);
let seed = Number(values.seed) >>> 0;
const random = () => (seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0) / 2 ** 32;

// ---- two inputs that differ in every weight
// ---------------------------------------------------------------------------------------

const varint = (n) => (n < 128 ? [n] : [(n % 128) | 128, ...varint(Math.floor(n / 128))]);
const bytes = (field, content) => Buffer.concat([Buffer.from([...varint(field * 8 + 2), ...varint(content.length)]), content]);
const number = (field, value) => Buffer.from([...varint(field * 8), ...varint(value)]);
const text = (field, words) => bytes(field, Buffer.from(words));
const LAYERS = 8;
const SIZE = 512;

function inputModel(value) {
  const type = (name) => bytes(name === "x" ? 11 : 12, Buffer.concat([text(1, name), bytes(2, bytes(1, number(1, 1)))]));
  const weight = (i) => {
    const data = Buffer.from(new Float32Array(SIZE * SIZE).fill(value).buffer);
    return bytes(5, Buffer.concat([number(1, SIZE), number(1, SIZE), number(2, 1), text(8, `w${i}`), bytes(9, data)]));
  };
  const node = (i) =>
    bytes(
      1,
      Buffer.concat([text(1, i === 0 ? "x" : `h${i - 1}`), text(1, `w${i}`), text(2, i === LAYERS - 1 ? "y" : `h${i}`), text(4, "MatMul")]),
    );
  const layers = Array.from({ length: LAYERS }, (_, i) => i);
  const graph = Buffer.concat([...layers.map(node), text(2, "g"), ...layers.map(weight), type("x"), type("y")]);
  return Buffer.concat([number(1, 8), bytes(7, graph), bytes(8, number(2, 17))]);
}

const folder = mkdtempSync(join(tmpdir(), "lowbit-kill-"));
process.on("exit", () => rmSync(folder, { recursive: true, force: true }));
const inputs = [1, 2].map((value) => join(folder, `in${value}.onnx`));
inputs.forEach((path, i) => writeFileSync(path, inputModel(i + 1)));
const place = join(folder, "out");

/** The values of fp16 weights in place: 1 or 2, "nothing", "torn", or "broken". */
function state() {
  const path = join(place, "model.onnx");
  if (!existsSync(path)) return "nothing";
  try {
    const model = readModel(path);
    try {
      const found = new Set();
      for (const tensor of model.proto.graph.initializer) {
        const entries = Object.fromEntries(tensor.externalData.map(({ key, value }) => [key, value]));
        const data = readFileSync(join(place, entries.location));
        const at = Number(entries.offset);
        for (let i = at; i < at + Number(entries.length); i += 2) found.add(data.readUInt16LE(i));
      }
      if (found.size !== 1) return "torn";
      return [...found][0] === 0x3c00 ? 1 : [...found][0] === 0x4000 ? 2 : "torn";
    } finally {
      model.close();
    }
  } catch {
    return "broken";
  }
}

const run = (input, force, after) =>
  new Promise((resolve) => {
    const args = [join(root, "dist/esm/cli.js"), "quantize", input, "-o", join(place, "model.onnx"), "--dtype", "fp16", "--external-data"];
    const child = spawn(process.execPath, force ? [...args, "--force"] : args, { stdio: ["ignore", "ignore", "pipe"] });
    let stderr = "";
    child.stderr.setEncoding("utf8").on("data", (words) => (stderr += words));
    let timer;
    // Moments are counted from the first sign of writing: the start of a process takes much longer than the write.
    const watch =
      after === undefined
        ? undefined
        : setInterval(() => {
            if (!isWriting()) return;
            clearInterval(watch);
            timer = setTimeout(() => child.kill("SIGKILL"), after);
          }, 0);
    child.on("close", (code, signal) => {
      clearInterval(watch);
      clearTimeout(timer);
      resolve({ code, signal, stderr });
    });
  });

const counts = { killed: 0, old: 0, new: 0, nothing: 0, torn: 0, broken: 0, leftovers: 0, failed: 0 };
const isWriting = () => existsSync(place) && readdirSync(place).some((name) => name.endsWith(".tmp"));

// The pair that stands there before, and how long a write takes here, from its first sign to its last.
mkdirSync(place);
let from;
let to;
const watch = setInterval(() => {
  if (!isWriting()) return;
  from ??= performance.now();
  to = performance.now();
}, 0);
await run(inputs[0], true);
clearInterval(watch);
const span = Math.max(5, to - from);
const before = join(folder, "before");
cpSync(place, before, { recursive: true });

for (let i = 0; i < runs; i++) {
  const fresh = i % 4 === 3;
  rmSync(place, { recursive: true });
  if (fresh) mkdirSync(place);
  else cpSync(before, place, { recursive: true });
  const { signal } = await run(inputs[1], !fresh, random() * span * 1.1);
  if (signal === "SIGKILL") counts.killed++;
  const found = state();
  counts[found === 1 ? "old" : found === 2 ? "new" : found]++;
  if (fresh ? found !== 2 && found !== "nothing" : found !== 1 && found !== 2)
    console.log(`run ${i}: ${found}, ${readdirSync(place).join(" ")}`);
  // The next run: where nothing stands it needs no force.
  const error = await quantizeModel(inputs[1], join(place, "model.onnx"), {
    dtype: "fp16",
    externalData: true,
    force: found !== "nothing",
  }).then(
    () => undefined,
    (reason) => reason,
  );
  const files = readdirSync(place).sort().join(" ");
  if (error !== undefined || state() !== 2) {
    counts.failed++;
    console.log(`run ${i}, the next: ${state()}, ${error}`);
  }
  if (files !== "model.onnx model.onnx_data") {
    counts.leftovers++;
    console.log(`run ${i}, left over: ${files}`);
  }
}
console.log(
  `${runs} runs, ${counts.killed} killed before their end: ${counts.old} old pairs, ${counts.new} new pairs, ${counts.nothing} nothing (new outputs), ` +
    `${counts.torn} torn, ${counts.broken} broken; after the next run ${counts.leftovers} with leftovers, ${counts.failed} failed`,
);
process.exitCode = counts.torn + counts.broken + counts.leftovers + counts.failed > 0 ? 1 : 0;
