// Models larger than memory. A sparse file of N GiB (400 products, one of 3 GiB where there is room for it) quantized
// to q4: time, GB/s, peak memory beside the bound 2 x the largest layer as float32 + 250 MB. --gptq: a chain of
// products calibrated by GPTQ; --kills N then does it once more, killed at N random moments and resumed, and compares
// bytes and how often each layer was made. --peer PYTHON: the chain rounded to nearest, then the same by onnxruntime's
// own tool (bench/peers/ort_quantize.py) in a Python that has onnxruntime and onnx.
//   npm run bench -- large [--gib 20] [--folder DIR]; large --gptq [--gib 4] [--kills 20]; large --peer python3 [--gib 2]
// needs npm run build
import { spawn, spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { createReadStream, existsSync, mkdirSync, rmSync, statSync } from "node:fs";
import { cpus, loadavg, tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { openSession } from "../src/onnx/session.ts";
import { CHAIN_K, CHAIN_N, GIB, K, KNOWN, knownColumn, LARGEST, LAYERS, makeChain, makeSparse } from "./large-models.ts";

/** What is measured, in a process of its own on the built package: argv folder, output, kind, inputs, "resume". */
const CHILD = `
const { quantizeModel } = await import(${JSON.stringify(new URL("../dist/esm/onnx.js", import.meta.url).href)});
const [folder, output, kind, k, resume] = process.argv.slice(-5);
let state = 1;
const next = () => (state = (Math.imul(state, 1664525) + 1013904223) >>> 0) / 2 ** 32;
const calibration = Array.from({ length: 8 }, () => ({ x: { type: "float32", data: Float32Array.from({ length: 64 * k }, () => next() - 0.5), dims: [64, Number(k)] } }));
const made = [];
const report = await quantizeModel(folder + "/model.onnx", folder + "/" + output, {
  dtype: "q4",
  resume: resume === "resume",
  onProgress: ({ layer }) => layer.endsWith("(quantize)") && resume === "resume" && console.log("made " + layer),
  ...(kind === "rtn" ? {} : { algorithm: { name: "gptq", damp: 0.05, actOrder: false, polish: false }, calibration }),
});
console.log(JSON.stringify({ seconds: report.seconds, cpu: (process.resourceUsage().userCPUTime + process.resourceUsage().systemCPUTime) / 1e6, peak: process.resourceUsage().maxRSS * 1024, bytes: report.fileBytesAfter, before: report.fileBytesBefore, quantized: report.quantized, layers: report.layers.length }));
`;

const childArgs = (folder: string, output: string, kind: string, resume: string): string[] => [
  "--input-type=module",
  "-e",
  CHILD,
  folder,
  output,
  kind,
  String(CHAIN_K),
  resume,
];

/** SHA-256 of an output and its data. */
async function hashOf(folder: string, output: string): Promise<string> {
  const hash = createHash("sha256");
  for (const name of [output, `${output}_data`].filter((file) => existsSync(join(folder, file))))
    for await (const chunk of createReadStream(join(folder, name))) hash.update(chunk as Buffer);
  return hash.digest("hex");
}

/** Runs until the output is there, killed at `kills` random moments on the way; how often a layer was begun. */
async function killed(folder: string, output: string, kills: number, seconds: number): Promise<{ begun: number; kills: number }> {
  let begun = 0;
  let done = 0;
  for (;;) {
    const child = spawn(process.execPath, childArgs(folder, output, "gptq", "resume"), { stdio: ["ignore", "pipe", "inherit"] });
    let text = "";
    child.stdout.setEncoding("utf8").on("data", (chunk: string) => (text += chunk));
    // each run gets some way: starting, and hashing what is there, takes a while
    const after = done < kills ? (0.5 + Math.random()) * (seconds / kills) * 1000 + 1500 : Infinity;
    const timer = after === Infinity ? undefined : setTimeout(() => child.kill("SIGKILL"), after);
    const code = await new Promise((resolve) => child.on("close", (status) => resolve(status)));
    clearTimeout(timer);
    begun += text.split("made ").length - 1;
    if (code === 0) return { begun, kills: done };
    if (code !== null) throw new Error(`the run failed with ${String(code)}`);
    done++;
  }
}

/** The product of the tensor of 3 GiB in onnxruntime: the columns that are not zeros, beside sums in float64. */
async function checkLargest(path: string): Promise<string> {
  const session = await openSession(path, { label: path, remedy: "" });
  const output = `y${LAYERS >> 1}`;
  const x = knownColumn(1000);
  const y = (await session.run({ x: { type: "float32", data: x, dims: [1, K] } }, [output]))[output].data as Float32Array;
  await session.release();
  let [signal, noise] = [0, 0];
  for (let j = 0; j < 2 * KNOWN; j++) {
    const expected = knownColumn(j).reduce((sum, w, i) => sum + w * x[i], 0);
    signal += expected ** 2;
    noise += (expected - y[j < KNOWN ? j : LARGEST - 2 * KNOWN + j]) ** 2;
  }
  const rest = y.subarray(KNOWN, LARGEST - KNOWN).every((value) => value === 0);
  return (
    `the file loads in onnxruntime; of the product of 3 GiB the first and last ${KNOWN} columns have ${(10 * Math.log10(signal / noise)).toFixed(1)} dB ` +
    `(q4 of uniform weights: 20 to 22), the others are ${rest ? "zero, as their weights" : "NOT ZERO"}`
  );
}

const mb = (n: number): string => `${(n / 1e6).toFixed(0)} MB`;

/** What a run says of itself: wall and processor seconds, peak resident bytes, bytes of the output. */
interface Made {
  readonly seconds: number;
  readonly cpu: number;
  readonly peak: number;
  readonly bytes: number;
}

const describe = ({ seconds, cpu, peak, bytes }: Made, before: number): string =>
  `${mb(bytes)} in ${seconds.toFixed(1)} s (${(before / 1e9 / seconds).toFixed(2)} GB/s; ${cpu.toFixed(1)} s of processor), peak ${mb(peak)}`;

/** The last line that a program prints, as JSON. */
function lastLine<R>(program: string, args: readonly string[]): R {
  const { status, stdout, stderr, error } = spawnSync(program, args, { encoding: "utf8", maxBuffer: 1 << 26 });
  if (status !== 0) throw error ?? new Error(stderr);
  return JSON.parse(stdout.trim().split("\n").at(-1)!) as R;
}

/** onnxruntime's own quantizer on the same model. */
function peer(python: string, folder: string): string {
  const [program, ...args] = python.split(" ");
  const script = fileURLToPath(new URL("peers/ort_quantize.py", import.meta.url));
  const { version, ...made } = lastLine<Made & { version: string }>(program, [
    ...args,
    script,
    join(folder, "model.onnx"),
    join(folder, "two/out.onnx"),
  ]);
  return `${version}: ${describe(made, statSync(join(folder, "model.onnx_data")).size)}`;
}

async function killsOf(folder: string, kills: number, seconds: number, layers: number): Promise<string> {
  const again = await killed(folder, "two/out.onnx", kills, seconds);
  const same = (await hashOf(folder, "one/out.onnx")) === (await hashOf(folder, "two/out.onnx"));
  const twice = again.begun - layers;
  return (
    `killed ${again.kills} times and resumed: ${same ? "the same bytes" : "OTHER BYTES"}; ${again.begun} layers begun for ${layers}: ` +
    `${twice} twice${twice <= again.kills ? "" : ", MORE THAN ONE A KILL"}`
  );
}

/** npm run bench -- large */
export async function large(args: readonly string[]): Promise<void> {
  const { values } = parseArgs({
    args: [...args],
    options: {
      gib: { type: "string" },
      gptq: { type: "boolean", default: false },
      kills: { type: "string", default: "0" },
      peer: { type: "string" },
      folder: { type: "string", default: join(tmpdir(), "lowbit-large") },
    },
  });
  const chain = values.gptq || values.peer !== undefined;
  const gib = Number(values.gib ?? (values.gptq ? 4 : chain ? 2 : 20));
  const { folder } = values;
  rmSync(folder, { recursive: true, force: true });
  for (const one of ["one", "two"]) mkdirSync(join(folder, one), { recursive: true });
  try {
    (chain ? makeChain : makeSparse)(folder, gib);
    const largest = chain ? 4 * CHAIN_K * CHAIN_N : gib >= 8 ? 3 * GIB : (gib * GIB) / LAYERS;
    const { before, quantized, layers, ...made } = lastLine<Made & Record<"before" | "quantized" | "layers", number>>(
      process.execPath,
      childArgs(folder, "one/out.onnx", values.gptq ? "gptq" : "rtn", ""),
    );
    console.log(`node ${process.version}, ${cpus()[0]?.model ?? "?"} x ${cpus().length}, load ${loadavg()[0].toFixed(2)}`);
    console.log(
      `${(before / GIB).toFixed(1)} GiB ${values.gptq ? "GPTQ" : "round to nearest"} -> ${describe(made, before)}; ` +
        `2 x the largest layer + 250 MB is ${mb(2 * largest + 250e6)}`,
    );
    console.log(`${quantized} of ${layers} layers quantized`);
    if (!chain && gib >= 8) console.log(await checkLargest(join(folder, "one/out.onnx")));
    if (values.peer !== undefined) console.log(peer(values.peer, folder));
    if (Number(values.kills) > 0) console.log(await killsOf(folder, Number(values.kills), made.seconds, layers));
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}
