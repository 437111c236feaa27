// Peers: onnxruntime-node and onnxruntime-web (MatMulNBits, MatMul, MatMulInteger), tfjs-backend-wasm and jax-js
// (float32 MatMul). A peer that is not installed is reported as such, never silently left out. bench/peers/package.json
// lists those that the main install has not.
import { existsSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";

const here = dirname(fileURLToPath(import.meta.url));

/** A module of the main install, or of bench/peers (or the folder in LOWBIT_PEERS). */
export async function load(name: string): Promise<Record<string, unknown>> {
  for (const base of [here, join(here, "peers"), process.env.LOWBIT_PEERS ?? ""]) {
    if (base === "") continue;
    try {
      const path = createRequire(join(base, "package.json")).resolve(name);
      if (existsSync(path)) return (await import(pathToFileURL(path).href)) as Record<string, unknown>;
    } catch {
      // not installed here
    }
  }
  throw new Error(`${name} is not installed`);
}

// ---- a minimal ONNX writer: one node, float32 and uint8 initialisers
// -------------------------------------------------------------------
function varint(n: number): number[] {
  const out: number[] = [];
  let v = n;
  while (v > 127) {
    out.push((v % 128) | 128);
    v = Math.floor(v / 128);
  }
  out.push(v);
  return out;
}
const concat = (parts: readonly Uint8Array[]): Uint8Array => {
  const out = new Uint8Array(parts.reduce((n, p) => n + p.length, 0));
  let at = 0;
  for (const p of parts) {
    out.set(p, at);
    at += p.length;
  }
  return out;
};
const int = (field: number, value: number): Uint8Array => Uint8Array.from([...varint(field * 8), ...varint(value)]);
const bytes = (field: number, value: Uint8Array | string): Uint8Array => {
  const data = typeof value === "string" ? new TextEncoder().encode(value) : value;
  return concat([Uint8Array.from([...varint(field * 8 + 2), ...varint(data.length)]), data]);
};
const FLOAT = 1;
const UINT8 = 2;
const INT8 = 3;
const INT32 = 6;

const tensorProto = (name: string, type: number, dims: readonly number[], data: Uint8Array): Uint8Array =>
  concat([...dims.map((d) => int(1, d)), int(2, type), bytes(8, name), bytes(9, data)]);
const valueInfo = (name: string, type: number, dims: readonly number[]): Uint8Array =>
  concat([bytes(1, name), bytes(2, bytes(1, concat([int(1, type), bytes(2, concat(dims.map((d) => bytes(1, int(1, d)))))])))]);

/** Integers, and lists of them. */
export type Attributes = Readonly<Record<string, number | readonly number[]>>;

interface Node {
  readonly op: string;
  readonly domain?: string;
  readonly inputs: readonly string[];
  readonly attributes?: Attributes;
  readonly x: { readonly type: number; readonly dims: readonly number[] };
  readonly y: { readonly type: number; readonly dims: readonly number[] };
  readonly initializers: readonly Uint8Array[];
}

function model(node: Node, opset = 19): Uint8Array {
  const attributes = Object.entries(node.attributes ?? {}).map(([name, v]) =>
    bytes(5, concat([bytes(1, name), ...(typeof v === "number" ? [int(3, v), int(20, 2)] : [...v.map((one) => int(8, one)), int(20, 7)])])),
  );
  const proto = concat([
    ...node.inputs.map((i) => bytes(1, i)),
    bytes(2, "y"),
    bytes(4, node.op),
    bytes(7, node.domain ?? ""),
    ...attributes,
  ]);
  const graph = concat([
    bytes(1, proto),
    bytes(2, "bench"),
    ...node.initializers.map((t) => bytes(5, t)),
    bytes(11, valueInfo("x", node.x.type, node.x.dims)),
    bytes(12, valueInfo("y", node.y.type, node.y.dims)),
  ]);
  return concat([int(1, 9), bytes(7, graph), bytes(8, int(2, opset)), bytes(8, concat([bytes(1, "com.microsoft"), int(2, 1)]))]);
}

const raw = (a: Float32Array | Uint8Array | Int8Array): Uint8Array => new Uint8Array(a.buffer, a.byteOffset, a.byteLength);

/** MatMulNBits of 4 bits, block 32: q [n, k/32, 16] nibbles, scales [n * k/32]. */
export function matMulNBits(m: number, n: number, k: number, q: Uint8Array, scales: Float32Array, accuracyLevel: number): Uint8Array {
  return model({
    op: "MatMulNBits",
    domain: "com.microsoft",
    inputs: ["x", "q", "s"],
    attributes: { K: k, N: n, bits: 4, block_size: 32, accuracy_level: accuracyLevel },
    x: { type: FLOAT, dims: [m, k] },
    y: { type: FLOAT, dims: [m, n] },
    initializers: [tensorProto("q", UINT8, [n, k / 32, 16], q), tensorProto("s", FLOAT, [(n * k) / 32], raw(scales))],
  });
}

/** float32 MatMul: x [m, k], b [k, n]. */
export const matMul = (m: number, n: number, k: number, b: Float32Array): Uint8Array =>
  model({
    op: "MatMul",
    inputs: ["x", "b"],
    x: { type: FLOAT, dims: [m, k] },
    y: { type: FLOAT, dims: [m, n] },
    initializers: [tensorProto("b", FLOAT, [k, n], raw(b))],
  });

/** One operator of float32 x -> y, with float32 weights after x. Opset 17: axes of reductions are attributes. */
export const operatorModel = (
  op: string,
  attributes: Attributes,
  x: readonly number[],
  y: readonly number[],
  weights: readonly { readonly dims: readonly number[]; readonly data: Float32Array }[] = [],
): Uint8Array =>
  model(
    {
      op,
      attributes,
      inputs: ["x", ...weights.map((_, i) => `w${i}`)],
      x: { type: FLOAT, dims: x },
      y: { type: FLOAT, dims: y },
      initializers: weights.map(({ dims, data }, i) => tensorProto(`w${i}`, FLOAT, dims, raw(data))),
    },
    17,
  );

/** MatMulInteger: uint8 x [m, k], int8 b [k, n] -> int32. */
export const matMulInteger = (m: number, n: number, k: number, b: Int8Array): Uint8Array =>
  model({
    op: "MatMulInteger",
    inputs: ["x", "b"],
    x: { type: UINT8, dims: [m, k] },
    y: { type: INT32, dims: [m, n] },
    initializers: [tensorProto("b", INT8, [k, n], raw(b))],
  });

interface OrtSession {
  run(feeds: Record<string, unknown>): Promise<Record<string, { data: ArrayLike<number> }>>;
}
interface Ort {
  InferenceSession: { create(model: Uint8Array, options: object): Promise<OrtSession> };
  Tensor: new (type: string, data: Float32Array | Uint8Array, dims: readonly number[]) => unknown;
  env?: { wasm?: { numThreads?: number } };
}

/** A session with one thread (or on a provider of onnxruntime-node): returns a function that runs it. */
export async function onnxruntime(
  which: "node" | "web",
  proto: Uint8Array,
  x: Float32Array | Uint8Array,
  dims: readonly number[],
  threads = 1,
  provider: "cpu" | "webgpu" = "cpu",
): Promise<() => Promise<ArrayLike<number>>> {
  const loaded = await load(which === "node" ? "onnxruntime-node" : "onnxruntime-web");
  const ort = ((loaded.default as Record<string, unknown> | undefined)?.InferenceSession === undefined
    ? loaded
    : loaded.default) as unknown as Ort;
  if (which === "web" && ort.env?.wasm !== undefined) ort.env.wasm.numThreads = 1;
  const options =
    which === "node"
      ? { intraOpNumThreads: threads, interOpNumThreads: 1, executionProviders: [provider] }
      : { executionProviders: ["wasm"] };
  const session = await ort.InferenceSession.create(proto, options);
  const feed = { x: new ort.Tensor(x instanceof Float32Array ? "float32" : "uint8", x, dims) };
  return async () => (await session.run(feed)).y.data;
}

/** float32 a [m, k] * b [k, n] in tfjs-backend-wasm. */
export async function tfjs(a: Float32Array, b: Float32Array, m: number, n: number, k: number): Promise<() => unknown> {
  const tf = (await load("@tensorflow/tfjs-core")) as {
    setBackend(name: string): Promise<boolean>;
    tensor2d(data: Float32Array, shape: [number, number]): { dispose(): void };
    matMul(a: unknown, b: unknown): { dataSync(): Float32Array; dispose(): void };
  };
  const backend = (await load("@tensorflow/tfjs-backend-wasm")) as {
    setWasmPaths?: (path: string) => void;
    setThreadsCount?: (n: number) => void;
  };
  backend.setThreadsCount?.(1);
  await tf.setBackend("wasm");
  const [ta, tb] = [tf.tensor2d(a, [m, k]), tf.tensor2d(b, [k, n])];
  return () => {
    const y = tf.matMul(ta, tb);
    y.dispose();
  };
}

/** float32 a [m, k] * b [k, n] in jax-js on its wasm backend. */
export async function jax(a: Float32Array, b: Float32Array, m: number, n: number, k: number): Promise<() => Promise<unknown>> {
  const lib = (await load("@jax-js/jax")) as {
    init(...devices: string[]): Promise<unknown>;
    defaultDevice(device: string): unknown;
    jit(f: (a: unknown, b: unknown) => unknown): (a: unknown, b: unknown) => { data(): Promise<Float32Array> };
    numpy: {
      array(data: Float32Array, options?: object): { reshape(shape: number[]): { ref: unknown } };
      matmul(a: unknown, b: unknown): { data(): Promise<Float32Array> };
    };
  };
  // it starts a pool where there is a global Worker, which onnxruntime-web and tfjs define in Node in a form that it
  // cannot use
  const scope = globalThis as { Worker?: unknown };
  const saved = scope.Worker;
  delete scope.Worker;
  await lib.init("wasm");
  lib.defaultDevice("wasm");
  const np = lib.numpy;
  const ta = np.array(a).reshape([m, k]);
  const tb = np.array(b).reshape([k, n]);
  const run = async (): Promise<unknown> => np.matmul(ta.ref, tb.ref).data();
  await run();
  if (saved !== undefined) scope.Worker = saved;
  return run;
}

/** Adds a peer, or reports why it is missing. */
export async function optional<T>(name: string, make: () => Promise<T>, missing: string[]): Promise<T | null> {
  try {
    return await make();
  } catch (error) {
    missing.push(`${name}: ${String(error instanceof Error ? error.message : error).split("\n")[0]}`);
    return null;
  }
}
