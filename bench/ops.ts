// Kernels of operators (kernels/wasm/nn) on one thread: each beside its roof in the same run (multiply-add peak, or the
// read loop over as many bytes) and the same operator in onnxruntime-node and -web. Attention of one token over 1024
// keys, 16 query and 8 kv heads of 128, for every cache; onnxruntime has it in a decoder only (bench decode).
import type { Family } from "../kernels/wasm/engine/family.ts";
import { wasmFeatures } from "../kernels/wasm/engine/features.ts";
import { attention, attentionJob } from "../kernels/wasm/nn/attention.ts";
import { cacheRowBytes, type CacheKind } from "../kernels/wasm/nn/cache.ts";
import { chain, chainJob, chainSpec } from "../kernels/wasm/nn/chain.ts";
import { copy, copyJob } from "../kernels/wasm/nn/copy.ts";
import { matmul, matmulJob, matmulSpec } from "../kernels/wasm/nn/matmul.ts";
import { norm, normJob } from "../kernels/wasm/nn/norm.ts";
import { reduce, reduceJob, reduceSpec } from "../kernels/wasm/nn/reduce.ts";
import { rowsAt } from "../kernels/wasm/nn/rows.ts";
import { softmax, softmaxJob } from "../kernels/wasm/nn/softmax.ts";
import { operand, silu } from "../kernels/wasm/nn/values.ts";
import { engineMemory } from "../src/backends/wasm/memory.ts";
import { convolution, pooling, runJobs, type ConvShape } from "../src/backends/wasm/nn/convolution.ts";
import { wasm } from "../src/index.ts";
import { measure, type Candidate, type Row } from "./measure.ts";
import { onnxruntime, operatorModel, optional, type Attributes } from "./peers.ts";
import { f32Madd, f32MulAdd, readLoop } from "./roofs.ts";

const noise = (n: number): Float32Array => Float32Array.from({ length: n }, () => Math.random() - 0.5);

/** A kernel on operands, and the operator that is the same. */
interface Case {
  readonly name: string;
  /** Multiplications and additions, or bytes that must be read and written: the roof. */
  readonly ops?: number;
  readonly bytes: number;
  readonly run: () => void;
  readonly peer?: {
    readonly op: string;
    readonly attributes?: Attributes;
    readonly x: readonly number[];
    readonly y: readonly number[];
    readonly weights?: readonly (readonly number[])[];
  };
}

type Memory = ReturnType<typeof engineMemory>;

function cases(memory: Memory): Case[] {
  const { shared } = memory;
  const { relaxed } = memory.features;
  const place = (floats: number): number => {
    const { address } = memory.allocate(4 * floats + 64);
    memory.floats(address, floats).set(noise(floats));
    return address;
  };
  const kernel = <Spec extends object>(
    of: Family<Spec>,
    spec: Spec,
    job: { readonly items: number; readonly args: Int32Array; readonly panelBytes?: number },
  ): (() => void) => {
    const built = memory.kernel(of, spec);
    return () => memory.run(built, job.items, job.args, job.panelBytes);
  };
  const found: Case[] = [];

  const product = (batch: number, m: number, n: number, k: number, b: "rows" | "columns"): void => {
    const [x, w, y] = [place(batch * m * k), place(batch * k * n), place(batch * m * n)];
    const spec = matmulSpec({ m }, { a: "rows", b }, { relaxed, shared });
    const step = 4 * (b === "rows" ? n : k);
    const at = (address: number, width: number, size: number) => ({ address, step: width, outer: 4 * size });
    const job = matmulJob({ m, n, k, outer: batch, a: at(x, 4 * k, m * k), b: at(w, step, n * k), c: at(y, 4 * n, m * n) }, spec, 1);
    const shape = batch === 1 ? [k, n] : [batch, k, n];
    found.push({
      name: `matmul ${batch} x [${m}, ${k}] x [${k}, ${n}]${b === "columns" ? " transposed" : ""}`,
      ops: 2 * batch * m * n * k,
      bytes: 4 * batch * (m * k + k * n + m * n),
      run: kernel(matmul, spec, job),
      ...(b === "rows" ? { peer: { op: "MatMul", x: batch === 1 ? [m, k] : [batch, m, k], y: batch === 1 ? [m, n] : [batch, m, n], weights: [shape] } } : {}),
    }); // prettier-ignore
  };
  product(1, 256, 256, 256, "rows");
  product(1, 768, 768, 768, "rows");
  product(12, 128, 128, 64, "columns");
  product(12, 128, 64, 128, "rows");
  product(1, 1, 2048, 2048, "rows");
  product(1, 1, 2048, 2048, "columns");

  const image = (name: string, s: ConvShape): void => {
    const plan = convolution(memory, s);
    const width = s.channels / s.groups;
    const area = s.kernel[0] * s.kernel[1];
    const [x, w] = [place(s.channels * s.size[0] * s.size[1]), place(s.outputs * width * area)];
    const outputs = s.outputs * plan.output[0] * plan.output[1];
    const table = place(plan.table.length);
    memory.floats(table, plan.table.length).set(new Float32Array(plan.table.buffer));
    const jobs = plan.jobs({ x, w, y: place(outputs), table, scratch: place(plan.scratchBytes / 4 + 1) });
    const pads = [s.pads[0][0], s.pads[1][0], s.pads[0][1], s.pads[1][1]];
    found.push({
      name,
      ops: 2 * outputs * width * area,
      bytes: 4 * (s.channels * s.size[0] * s.size[1] + outputs),
      run: () => runJobs(memory, jobs),
      peer: {
        op: "Conv",
        attributes: { group: s.groups, kernel_shape: s.kernel, strides: s.strides, pads },
        x: [1, s.channels, ...s.size],
        y: [1, s.outputs, ...plan.output],
        weights: [[s.outputs, width, ...s.kernel]],
      },
    });
  };
  const base: ConvShape = { batch: 1, channels: 64, outputs: 64, groups: 1, size: [56, 56], kernel: [3, 3], strides: [1, 1], dilations: [1, 1], pads: [[1, 1], [1, 1]] }; // prettier-ignore
  image("conv 3x3 64 -> 64, 56x56", base);
  image("conv 1x1 128 -> 128, 28x28", { ...base, channels: 128, outputs: 128, size: [28, 28], kernel: [1, 1], pads: [[0, 0], [0, 0]] }); // prettier-ignore
  image("conv 3x3 stride 2, 3 -> 32, 224x224", { ...base, channels: 3, outputs: 32, size: [224, 224], strides: [2, 2] });
  image("depthwise 3x3 128, 56x56", { ...base, channels: 128, outputs: 128, groups: 128 });
  image("depthwise 3x3 stride 2, 128, 56x56", { ...base, channels: 128, outputs: 128, groups: 128, strides: [2, 2] });
  {
    const s = { ...base, kernel: [2, 2], strides: [2, 2], pads: [[0, 0], [0, 0]] } as const; // prettier-ignore
    const plan = pooling(memory, { ...s, kind: "max" });
    const table = place(plan.table.length);
    memory.floats(table, plan.table.length).set(new Float32Array(plan.table.buffer));
    const jobs = plan.jobs({ x: place(64 * 56 * 56), y: place(64 * 28 * 28), table, scratch: 0 });
    const attributes = { kernel_shape: s.kernel, strides: s.strides };
    found.push({ name: "max pool 2x2, 64 of 56x56", bytes: 4 * 64 * (56 * 56 + 28 * 28), run: () => runJobs(memory, jobs), peer: { op: "MaxPool", attributes, x: [1, 64, 56, 56], y: [1, 64, 28, 28] } }); // prettier-ignore
  }

  const [rows, width] = [1024, 1024];
  const [x, y] = [place(rows * width), place(rows * width)];
  const two = [rows, width];
  const all = 8 * rows * width;
  const transposed = copyJob(
    { sizes: two, bytes: 4, from: { address: x, strides: [4, 4 * width] }, to: { address: y, strides: [4 * width, 4] } },
    shared,
  );
  found.push({ name: "transpose 1024x1024", bytes: all, run: kernel(copy, transposed.spec, transposed), peer: { op: "Transpose", attributes: { perm: [1, 0] }, x: two, y: two } }); // prettier-ignore
  for (const inner of [1, width]) {
    const spec = reduceSpec("mean", { inner }, shared);
    const job = reduceJob({ outer: inner === 1 ? rows : 1, axis: inner === 1 ? width : rows, inner, x, y }, spec);
    const axes = [inner === 1 ? 1 : 0];
    found.push({ name: `mean of ${inner === 1 ? "rows" : "columns"} 1024x1024`, bytes: all / 2, run: kernel(reduce, spec, job), peer: { op: "ReduceMean", attributes: { axes }, x: two, y: inner === 1 ? [rows, 1] : [1, width] } }); // prettier-ignore
  }
  const at = rowsAt(x, width, rows);
  const to = rowsAt(y, width, rows);
  found.push({ name: "softmax 1024x1024", bytes: all, run: kernel(softmax, { shared }, softmaxJob({ rows, width, x: at, y: to })), peer: { op: "Softmax", x: two, y: two } }); // prettier-ignore
  const layer = { kind: "layer", skip: false, addend: false, scale: true, shift: false, shared } as const;
  const scale = place(width);
  found.push({ name: "layer norm 1024x1024", bytes: all, run: kernel(norm, layer, normJob({ rows, width, epsilon: 1e-5, x: at, y: to, scale })), peer: { op: "LayerNormalization", x: two, y: two, weights: [[width]] } }); // prettier-ignore
  found.push({ name: "silu 1024x1024", bytes: all, run: kernel(chain, chainSpec([silu(operand(0))], ["vector"], { shared, relaxed }), chainJob(rows, width, [at, to])) }); // prettier-ignore

  const [head, kvHeads, group, keys] = [128, 8, 2, 1024];
  const q = place(kvHeads * group * head);
  const result = place(kvHeads * group * head);
  for (const [k, v] of [["float32", "float32"], ["float16", "float16"], ["int8", "int8"], ["int8", "int4"], ["int4_halves", "int4"]] as const) {
    const spec = { head, softcap: false, mask: false, k, v, relaxed, shared };
    const [kb, vb] = [cacheRowBytes(k, head), cacheRowBytes(v, head)];
    const cache = (kind: CacheKind, bytes: number): number => {
      const address = place((kvHeads * keys * bytes) / 4);
      // small halves: random bits would be subnormals and infinities
      if (kind === "float16") memory.floats(address, (kvHeads * keys * bytes) / 4).fill(new Float32Array(Uint16Array.of(0x2e66, 0xae66).buffer)[0]);
      return address;
    };
    const words = place(kvHeads * keys);
    memory.floats(words, kvHeads * keys).fill(0.01);
    const job = attentionJob({ tokens: 1, kvHeads, group, keys, causal: true, scale: 0.088, q: { address: q, token: 0, head: 4 * head }, y: { address: result, token: 0, head: 4 * head },
      k: { address: cache(k, kb), token: kb, head: kb * keys }, v: { address: cache(v, vb), token: vb, head: vb * keys },
      kScales: { address: words, head: 4 * keys }, vScales: { address: words, head: 4 * keys } }, spec);
    found.push({ name: `attention 1024 keys, ${k === v ? k : `${k} keys, ${v} values`}`, ops: 4 * kvHeads * group * keys * head, bytes: kvHeads * keys * (kb + vb), run: kernel(attention, spec, job) });
  } // prettier-ignore
  return found;
}

export async function opsBench(options: { readonly seconds: number; readonly quick: boolean }): Promise<{
  rows: Row[];
  ratios: Record<string, number>;
  missing: string[];
}> {
  const missing: string[] = [];
  const rows: Row[] = [];
  const ratios: Record<string, number> = {};
  const memory = engineMemory(await wasm({ threads: 1 }));
  for (const c of cases(memory)) {
    const roof = wasmFeatures().relaxed ? f32Madd() : f32MulAdd();
    const read = readLoop(`read loop of ${(c.bytes / 1e6).toFixed(2)} MB`, c.bytes);
    const candidates: Candidate[] = [
      { name: c.name, ops: c.ops, bytes: c.bytes, run: c.run },
      ...(c.ops === undefined ? [read] : [roof, read]),
    ];
    const peers: string[] = [];
    if (c.peer !== undefined)
      for (const which of options.quick ? (["node"] as const) : (["node", "web"] as const)) {
        const { op, attributes, x, y, weights = [] } = c.peer;
        const size = (dims: readonly number[]): number => dims.reduce((a, b) => a * b, 1);
        const proto = operatorModel(op, attributes ?? {}, x, y, weights.map((dims) => ({ dims, data: noise(size(dims)) }))); // prettier-ignore
        const run = await optional(`onnxruntime-${which} ${op}`, () => onnxruntime(which, proto, noise(size(x)), x), missing);
        if (run === null) continue;
        peers.push(which);
        candidates.push({ name: `onnxruntime-${which}: ${c.name}`, run });
      }
    const measured = await measure(candidates, options.seconds / 8);
    rows.push(...measured);
    // CPU time: a neighbour that takes the core away lengthens the other
    const ms = (name: string): number => measured.find((row) => row.name === name)?.cpuMs ?? NaN;
    const own = measured[0];
    // what the arithmetic takes at its peak, or the bytes at the rate of the read loop, whichever is longer
    const compute = c.ops === undefined ? 0 : c.ops / (measured[1].gops ?? NaN) / 1e6;
    ratios[`${c.name}: of its roof`] = Math.max(compute, ms(read.name)) / own.cpuMs;
    for (const which of peers) ratios[`${c.name}: times onnxruntime-${which}`] = ms(`onnxruntime-${which}: ${c.name}`) / own.cpuMs;
  }
  return { rows, ratios, missing };
}
