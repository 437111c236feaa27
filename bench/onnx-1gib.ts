// Quantizes 1 GiB of weights (64 MatMul of 2048 x 2048 float32) to q4 in a process of its own and prints wall time,
// time inside quantizeModel and peak memory. The model is generated on disk, streaming; a second one keeps its weights
// as external data. --gptq N quantizes the first N layers by GPTQ on 1024 vectors, and says what the whole would take.
// npm run bench -- onnx-1gib [folder] [--runs 3] [--gptq N]; needs npm run build. For comparison (2 cores AMD EPYC, onnxruntime 1.21 to 1.23
// in Python): 2.3 to 3.3 s in the call, 6.3 to 7.5 s with imports, 2354 MB.
import { spawnSync } from "node:child_process";
import { closeSync, existsSync, fsyncSync, mkdirSync, openSync, readSync, rmSync, statSync, writeFileSync, writeSync } from "node:fs";
import { cpus, loadavg, tmpdir } from "node:os";
import { join } from "node:path";
import { create, toBinary } from "@bufbuild/protobuf";
import {
  GraphProtoSchema,
  ModelProtoSchema,
  NodeProtoSchema,
  OperatorSetIdProtoSchema,
  StringStringEntryProtoSchema,
  TensorProtoSchema,
  TensorProto_DataLocation,
  TensorProto_DataType,
} from "../src/onnx/file/gen/onnx_pb.ts";
import { value } from "../test/onnx/build.ts";

const LAYERS = 64;
const SIZE = 2048;
const BYTES = SIZE * SIZE * 4;

function varint(n: number): number[] {
  const out: number[] = [];
  for (; n > 127; n = Math.floor(n / 128)) out.push((n % 128) | 128);
  return [...out, n];
}

/** Weights of one layer, roughly normal; one array of random numbers read at another offset for each layer. */
const pool = new Float32Array(SIZE * SIZE + LAYERS * 1009);
let state = 12345;
const next = (): number => (state = (Math.imul(state, 1664525) + 1013904223) >>> 0) / 2 ** 32;
const fillPool = (): void => {
  for (let i = 0; i < pool.length; i++) pool[i] = (next() + next() + next() - 1.5) * 0.04;
};
const weight = (layer: number): Uint8Array => new Uint8Array(pool.buffer, layer * 1009 * 4, BYTES);

const nodes = Array.from({ length: LAYERS }, (_, i) =>
  create(NodeProtoSchema, {
    opType: "MatMul",
    name: `mm${i}`,
    input: [i === 0 ? "x" : `h${i - 1}`, `w${i}`],
    output: [i === LAYERS - 1 ? "y" : `h${i}`],
  }),
);
const shell = {
  name: "g",
  node: nodes,
  input: [value("x", TensorProto_DataType.FLOAT, ["batch", SIZE])],
  output: [value("y", TensorProto_DataType.FLOAT, ["batch", SIZE])],
};
const header = { irVersion: 8n, opsetImport: [create(OperatorSetIdProtoSchema, { domain: "", version: 17n })] };
const dims = [BigInt(SIZE), BigInt(SIZE)];

function generateInside(path: string): void {
  const graph = toBinary(GraphProtoSchema, create(GraphProtoSchema, shell));
  const heads = Array.from({ length: LAYERS }, (_, i) => {
    const head = toBinary(TensorProtoSchema, create(TensorProtoSchema, { name: `w${i}`, dataType: TensorProto_DataType.FLOAT, dims }));
    const body = [...head, 0x4a, ...varint(BYTES)];
    return Uint8Array.from([0x2a, ...varint(body.length + BYTES), ...body]);
  });
  const total = graph.length + heads.reduce((sum, head) => sum + head.length + BYTES, 0);
  const fd = openSync(path, "w");
  writeSync(fd, toBinary(ModelProtoSchema, create(ModelProtoSchema, header)));
  writeSync(fd, Uint8Array.from([0x3a, ...varint(total)]));
  writeSync(fd, graph);
  heads.forEach((head, i) => {
    writeSync(fd, head);
    writeSync(fd, weight(i));
  });
  closeSync(fd);
}

function generateOutside(path: string): void {
  const entry = (key: string, text: string) => create(StringStringEntryProtoSchema, { key, value: text });
  const location = "model_external.onnx_data";
  const initializer = Array.from({ length: LAYERS }, (_, i) =>
    create(TensorProtoSchema, {
      name: `w${i}`,
      dataType: TensorProto_DataType.FLOAT,
      dims,
      dataLocation: TensorProto_DataLocation.EXTERNAL,
      externalData: [entry("location", location), entry("offset", String(i * BYTES)), entry("length", String(BYTES))],
    }),
  );
  writeFileSync(
    path,
    toBinary(ModelProtoSchema, create(ModelProtoSchema, { ...header, graph: create(GraphProtoSchema, { ...shell, initializer }) })),
  );
  const fd = openSync(`${path}_data`, "w");
  for (let i = 0; i < LAYERS; i++) writeSync(fd, weight(i));
  closeSync(fd);
}

/** Vectors of a calibration batch. */
const TOKENS = 1024;

/**
 * What is measured, in a process of its own on the built package: argv input, output, kind, "in" | "out", layers. For
 * GPTQ, vectors for the first layers; their neighbours resemble each other.
 */
const CHILD = `
const { quantizeModel } = await import(${JSON.stringify(new URL("../dist/esm/onnx.js", import.meta.url).href)});
const [input, output, kind, external, layers] = process.argv.slice(-5);
let state = 12345;
const next = () => (state = (Math.imul(state, 1664525) + 1013904223) >>> 0) / 2 ** 32;
const feeds = () => {
  const data = new Float32Array(${TOKENS * SIZE});
  for (let i = 0; i < data.length; i++) data[i] = next() - 0.5 + (i % ${SIZE} === 0 ? 0 : 0.8 * data[i - 1]);
  return [{ x: { type: "float32", data, dims: [${TOKENS}, ${SIZE}] } }];
};
const gptq = () => ({
  include: Array.from({ length: Number(layers) }, (_, i) => "mm" + i),
  algorithm: { name: "gptq", damp: 0.05, actOrder: false, polish: false },
  calibration: feeds(),
});
const report = await quantizeModel(input, output, {
  dtype: "q4",
  force: true,
  symmetric: kind === "sym",
  ...(external === "out" ? { externalData: true } : {}),
  ...(Number(layers) > 0 ? gptq() : {}),
});
const { maxRSS, userCPUTime, systemCPUTime } = process.resourceUsage();
console.log(JSON.stringify({
  seconds: report.seconds,
  peakMB: maxRSS / 1024,
  cpu: (userCPUTime + systemCPUTime) / 1e6,
  bytes: report.fileBytesAfter,
  sqnrDb: report.layers[0].sqnrDb,
}));
`;

interface ChildReport {
  readonly seconds: number;
  readonly peakMB: number;
  /** Processor time of the whole process: what the call would take on an idle machine, within a little. */
  readonly cpu: number;
  readonly bytes: number;
  readonly sqnrDb: number;
}

function runChild(args: readonly string[]): ChildReport & { readonly wall: number } {
  const started = performance.now();
  const made = spawnSync(process.execPath, ["--input-type=module", "-e", CHILD, ...args], { encoding: "utf8" });
  if (made.status !== 0) throw new Error(made.stderr);
  return { wall: (performance.now() - started) / 1000, ...(JSON.parse(made.stdout) as ChildReport) };
}

/** Seconds of reading the input and writing as many bytes as the output has, with a sync: no run is faster. */
function copyRoof(input: string, folder: string, bytes: number): string {
  const chunk = new Uint8Array(16 << 20);
  const started = performance.now();
  const from = openSync(input, "r");
  while (readSync(from, chunk, 0, chunk.length, null) > 0);
  closeSync(from);
  const read = performance.now();
  const path = join(folder, "roof");
  const to = openSync(path, "w");
  for (let at = 0; at < bytes; at += chunk.length) writeSync(to, chunk, 0, Math.min(chunk.length, bytes - at));
  const written = performance.now();
  fsyncSync(to);
  closeSync(to);
  const synced = performance.now();
  rmSync(path);
  const s = (a: number, b: number): string => ((b - a) / 1000).toFixed(2);
  return `this disk alone: reading the input ${s(started, read)} s, writing ${bytes} bytes ${s(read, written)} s, sync ${s(written, synced)} s`;
}

const number = (args: readonly string[], name: string, fallback: number): number => {
  const at = args.indexOf(name);
  return at < 0 ? fallback : Number(args[at + 1]);
};

export function onnxGib(args: readonly string[]): void {
  const runs = number(args, "--runs", 3);
  const gptq = number(args, "--gptq", 0);
  const folder = args[0] !== undefined && !args[0].startsWith("--") ? args[0] : join(tmpdir(), "lowbit-1gib");
  mkdirSync(folder, { recursive: true });
  const inside = join(folder, "model.onnx");
  const outside = join(folder, "model_external.onnx");
  if (!existsSync(inside) || !existsSync(`${outside}_data`) || statSync(inside).size < LAYERS * BYTES) {
    console.log(`generating 2 x ${LAYERS * BYTES} bytes in ${folder}`);
    fillPool();
    generateInside(inside);
    generateOutside(outside);
  }
  console.log(`node ${process.version}, ${cpus()[0]?.model ?? "?"} x ${cpus().length}, load ${loadavg()[0].toFixed(2)}`);
  const output = join(folder, "out.onnx");
  const clean = (): void => [output, `${output}_data`].forEach((path) => rmSync(path, { force: true }));
  if (gptq > 0) {
    const made = runChild([inside, output, "asym", "in", String(gptq)]);
    clean();
    console.log(
      `GPTQ of ${gptq} of ${LAYERS} layers: ${made.seconds.toFixed(1)} s in the call, ${made.cpu.toFixed(1)} s of processor (${((made.cpu * LAYERS) / gptq).toFixed(0)} s for all at that rate); peak ${made.peakMB.toFixed(0)} MB; load ${loadavg()[0].toFixed(2)}`,
    );
    return;
  }
  for (const [title, input, kind, data] of [
    ["sym", inside, "sym", "in"],
    ["asym", inside, "asym", "in"],
    ["sym, external data in and out", outside, "sym", "out"],
  ]) {
    const results = Array.from({ length: runs }, () => runChild([input, output, kind, data, "0"]));
    const sorted = (of: (result: (typeof results)[number]) => number): number[] => results.map(of).sort((a, b) => a - b);
    const [seconds, walls, cpu] = [sorted((r) => r.seconds), sorted((r) => r.wall), sorted((r) => r.cpu)];
    const peak = Math.max(...results.map((result) => result.peakMB));
    console.log(
      `${title}: call best ${seconds[0].toFixed(2)} s, median ${seconds[runs >> 1].toFixed(2)} s; process median ${walls[runs >> 1].toFixed(2)} s, of processor ${cpu[0].toFixed(2)} s; peak ${peak.toFixed(0)} MB; ${results[0].bytes} bytes; ${results[0].sqnrDb.toFixed(2)} dB; load ${loadavg()[0].toFixed(2)}`,
    );
    clean();
    if (data === "in" && kind === "sym") console.log(copyRoof(inside, folder, results[0].bytes));
  }
}
