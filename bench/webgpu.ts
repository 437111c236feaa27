// Products on WebGPU against onnxruntime-node's WebGPU provider (MatMulNBits, 4 bits, block 32) on the same device, N =
// K = 4096, and the device's own copies as the roof. Device rows: `batch` products submitted one after another,
// activations and results on the device, wall time until the queue is idle, per product; timestamp rows: the same by
// timestamp queries around them, where the device has those. Host rows include upload and reading back, as the
// provider's do. Meant for a GPU: on software drivers it runs, and its figures say nothing about one.
import { format, type BlockFormat } from "../formats/index.ts";
import { webgpu, type GpuBuffer, type GpuLayer } from "../src/backends/webgpu/backend.ts";
import { prepareMatmul, quantize, tensor } from "../src/index.ts";
import { measure, type Candidate, type Row } from "./measure.ts";
import { matMulNBits, onnxruntime, optional } from "./peers.ts";

const [n, k] = [4096, 4096];
/** Weights that take turns, so that no cache of the device holds the next one. */
const ROTATION = 8;

/** What the bench uses of a GPUDevice beyond what the library needs. */
interface Device {
  readonly features: { has(name: string): boolean };
  readonly limits: { readonly maxBufferSize: number };
  readonly adapterInfo?: { readonly vendor: string; readonly architecture: string; readonly description: string };
  readonly queue: { onSubmittedWorkDone(): Promise<undefined>; submit(commands: readonly object[]): void };
  createBuffer(descriptor: { size: number; usage: number }): GpuBuffer;
  createQuerySet(descriptor: { type: "timestamp"; count: number }): object;
  createCommandEncoder(): {
    copyBufferToBuffer(from: GpuBuffer, fromOffset: number, to: GpuBuffer, toOffset: number, bytes: number): void;
    beginComputePass(descriptor: object): { end(): void };
    resolveQuerySet(set: object, first: number, count: number, to: GpuBuffer, offset: number): void;
    finish(): object;
  };
}

interface Work {
  readonly name: string;
  readonly batch: number;
  readonly ops?: number;
  readonly bytes?: number;
  /** Submits `batch` repetitions. */
  submit(): Promise<unknown>;
}

export async function webgpuBench(options: { readonly seconds: number; readonly quick: boolean }): Promise<{
  device: string;
  rows: Row[];
  ratios: Record<string, number>;
  missing: string[];
}> {
  const missing: string[] = [];
  const backend = await webgpu();
  const device = backend.device as unknown as Device;
  const info = device.adapterInfo;
  const name = info === undefined ? "unknown" : `${info.vendor} ${info.architecture} ${info.description}`;
  const emulated = /llvmpipe|swiftshader|cpu/i.test(name);
  const batch = emulated ? 4 : 50;
  const random = (count: number): Float32Array => Float32Array.from({ length: count }, () => Math.random() - 0.5);
  const data = random(n * k);
  const works: Work[] = [];
  const host: Candidate[] = [];

  // roof: a copy reads and writes
  const copyBytes = Math.min(emulated ? 64 * 2 ** 20 : 256 * 2 ** 20, device.limits.maxBufferSize);
  const [from, to] = [0, 1].map(() => device.createBuffer({ size: copyBytes, usage: 4 | 8 }));
  works.push({
    name: "copy on the device",
    batch,
    bytes: 2 * copyBytes,
    async submit() {
      const encoder = device.createCommandEncoder();
      for (let i = 0; i < batch; i++) encoder.copyBufferToBuffer(from, 0, to, 0, copyBytes);
      device.queue.submit([encoder.finish()]);
    },
  });

  const layers = (spec: string, activations: "float32" | "float16" | "int8", count: number): { layers: GpuLayer[]; bytes: number } => {
    const w = quantize(tensor(data, [n, k]), format(spec) as BlockFormat);
    const made = Array.from({ length: count }, () => prepareMatmul(w, { backend, activations }) as GpuLayer);
    return { layers: made, bytes: w.codes.length + (w.scales?.length ?? 0) + (w.offsets?.length ?? 0) };
  };
  const rows = options.quick ? [1] : emulated ? [1, 64] : [1, 64, 512];
  const half = device.features.has("shader-f16");
  for (const [title, spec, activations] of [
    ["int4 f32", "int4_b32", "float32"],
    ["int4 f16", "int4_b32", "float16"],
    ["int4 a8", "int4_b32", "int8"],
    ["mxfp4 f32", "mxfp4", "float32"],
    ["nf4 f32", "nf4_b64", "float32"],
    ["int8 a8", "int8_b32", "int8"],
  ] as const) {
    if (activations === "float16" && !half) {
      missing.push(`${title}: this device has no shader-f16`);
      continue;
    }
    if (options.quick && title !== "int4 f32" && title !== "int4 a8") continue;
    const { layers: own, bytes } = layers(spec, activations, emulated ? 2 : ROTATION);
    for (const m of rows) {
      const x = backend.upload(activations === "float16" ? new Uint16Array(m * k) : random(m * k));
      const y = backend.upload(new Float32Array(m * n));
      let turn = 0;
      works.push({
        name: `${title}, m = ${m}`,
        batch,
        ops: 2 * m * n * k,
        bytes,
        async submit() {
          for (let i = 0; i < batch; i++) await own[turn++ % own.length].runBuffer(x, m, y);
        },
      });
    }
    if (activations !== "float16" && !title.startsWith("mx") && !title.startsWith("nf") && !title.startsWith("int8"))
      for (const m of rows) {
        const x = random(m * k);
        const y = new Float32Array(m * n);
        host.push({ name: `${title}, m = ${m}, host to host`, ops: 2 * m * n * k, bytes, run: () => own[0].runAsync(x, m, y) });
      }
  }

  // the peer, on a device of its own over the same driver
  const q = Uint8Array.from({ length: (n * k) / 2 }, () => Math.floor(Math.random() * 256));
  const scales = Float32Array.from({ length: (n * k) / 32 }, () => 0.01 + 0.01 * Math.random());
  for (const m of rows)
    for (const level of [0, 4]) {
      const peer = `onnxruntime-node WebGPU acc ${level}, m = ${m}, host to host`;
      const run = await optional(
        peer,
        () => onnxruntime("node", matMulNBits(m, n, k, q, scales, level), random(m * k), [m, k], 1, "webgpu"),
        missing,
      );
      if (run !== null) host.push({ name: peer, ops: 2 * m * n * k, bytes: q.length + 4 * scales.length, run });
    }

  const measured = await measure(
    [...works.map((w): Candidate => ({ name: w.name, run: () => w.submit().then(() => device.queue.onSubmittedWorkDone()) })), ...host],
    options.seconds,
  );
  // CPU time is that of a driver on the host at best: wall time counts here
  const figures = (row: Row, per: number, ops: number | undefined, bytes: number | undefined): Row => {
    const ms = row.bestMs / per;
    return {
      ...row,
      bestMs: ms,
      medianMs: row.medianMs / per,
      cpuMs: row.cpuMs / per,
      ...(ops === undefined ? {} : { gops: ops / ms / 1e6 }),
      ...(bytes === undefined ? {} : { gbs: bytes / ms / 1e6 }),
    };
  };
  const out = measured.map((row) => {
    const work = works.find((w) => w.name === row.name);
    const candidate = host.find((c) => c.name === row.name);
    return figures(row, work?.batch ?? 1, work?.ops ?? candidate?.ops, work?.bytes ?? candidate?.bytes);
  });
  if (device.features.has("timestamp-query"))
    for (const work of works) {
      const ns = await timestamps(device, work);
      if (ns === null) missing.push(`${work.name}, timestamps: the device counted none`);
      else
        out.push(
          figures(
            { name: `${work.name}, timestamps`, bestMs: ns / 1e6, medianMs: ns / 1e6, cpuMs: NaN, runs: 3 },
            work.batch,
            work.ops,
            work.bytes,
          ),
        );
    }
  else missing.push("timestamps: this device has no timestamp-query");

  const row = (title: string): Row | undefined => out.find((r) => r.name === `${title}, timestamps`) ?? out.find((r) => r.name === title);
  const ratio = (a: number | undefined, b: number | undefined): number => (a === undefined || b === undefined ? NaN : a / b);
  const ratios: Record<string, number> = {};
  for (const w of works.filter((v) => v.name.endsWith("m = 1")))
    ratios[`${w.name}: packed bytes, share of the copy's`] = ratio(row(w.name)?.gbs, row("copy on the device")?.gbs);
  for (const m of rows) {
    const own = (title: string) => row(`${title}, m = ${m}, host to host`)?.bestMs;
    const peer = (level: number) => row(`onnxruntime-node WebGPU acc ${level}, m = ${m}, host to host`)?.bestMs;
    ratios[`int4 f32, m = ${m}, host to host: speed of onnxruntime-node WebGPU acc 0`] = ratio(peer(0), own("int4 f32"));
    ratios[`int4 a8, m = ${m}, host to host: speed of onnxruntime-node WebGPU acc 4`] = ratio(peer(4), own("int4 a8"));
  }
  backend.dispose();
  return { device: emulated ? `${name} (software: these figures say nothing about a GPU)` : name, rows: out, ratios, missing };
}

/** Nanoseconds on the device between the ends of two empty passes around a batch; the best of three. */
async function timestamps(device: Device, work: Work): Promise<number | null> {
  const set = device.createQuerySet({ type: "timestamp", count: 2 });
  const resolved = device.createBuffer({ size: 16, usage: 0x200 | 4 });
  const readable = device.createBuffer({ size: 16, usage: 1 | 8 });
  const mark = (index: number): void => {
    const encoder = device.createCommandEncoder();
    encoder.beginComputePass({ timestampWrites: { querySet: set, endOfPassWriteIndex: index } }).end();
    device.queue.submit([encoder.finish()]);
  };
  let best = Infinity;
  for (let i = 0; i < 3; i++) {
    mark(0);
    await work.submit();
    mark(1);
    const encoder = device.createCommandEncoder();
    encoder.resolveQuerySet(set, 0, 2, resolved, 0);
    encoder.copyBufferToBuffer(resolved, 0, readable, 0, 16);
    device.queue.submit([encoder.finish()]);
    await readable.mapAsync(1);
    const [a, b] = new BigUint64Array(readable.getMappedRange());
    readable.unmap();
    if (b > a) best = Math.min(best, Number(b - a));
  }
  resolved.destroy();
  readable.destroy();
  return best === Infinity ? null : best;
}
