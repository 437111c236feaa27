// Loading: from the network (ranges, whole, the Cache API), with external data, with progress, given up in the middle,
// over and over; and onnxruntime where operators are missing.
import { createServer, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import * as ort from "onnxruntime-node";
import { afterAll, beforeAll, expect, test } from "vitest";
import { decoderModel, type DecoderSizes } from "../../bench/decode-model.ts";
import { quantize, tensor, wasm, type Backend, type SyncLayer } from "../../src/index.ts";
import { format } from "../../formats/index.ts";
import { reference } from "../../src/backends/reference.ts";
import { engineMemory } from "../../src/backends/wasm/memory.ts";
import { ggufBytes } from "../../src/interop/index.ts";
import { readModelBytes } from "../../src/onnx/file/io.ts";
import { readFloats } from "../../src/onnx/file/values.ts";
import { makePlan, readGraph } from "../../src/runtime/compile/plan.ts";
import { loadModel, type Session } from "../../src/runtime/index.ts";
import { isSlot, type Slot } from "../../src/runtime/machine/machine.ts";
import { encode, external, graph, model, node, raw, T, value } from "../onnx/build.ts";
import { numbers } from "./make.ts";

const [N, K] = [64, 64];
const matrix = numbers(1, N * K);
const boundary = { input: [value("x", T.FLOAT, [1, K])], output: [value("y", T.FLOAT, [1, N])] };
const small = encode(model(graph({ ...boundary, initializer: [raw("w", [K, N], matrix)], node: [node("MatMul", ["x", "w"], ["y"])] })));
const apart = encode(
  model(graph({ ...boundary, initializer: [external("w", [K, N], { location: "folder/w.bin", length: String(4 * N * K) })], node: [node("MatMul", ["x", "w"], ["y"])] })), // prettier-ignore
);
const weightBytes = new Uint8Array(matrix.buffer);
const feeds = { x: { type: "float32", dims: [1, K], data: numbers(2, K) } };
const first = async (session: Session): Promise<number> => ((await session.run(feeds)).y.data as Float32Array)[0];
let wanted = 0;
for (let i = 0; i < K; i++) wanted += feeds.x.data[i] * matrix[i * N];

const rows = (name: string, n: number, k: number) => quantize(tensor(numbers(name.length, n * k, -0.2, 0.2), [n, k]), format("ggml_q8_0"));
const ones = quantize(tensor(new Float32Array(K).fill(1), [K]), format("float32"));
const gguf = await ggufBytes({
  metadata: {
    "general.architecture": "llama",
    ...Object.fromEntries(Object.entries({ context_length: 32, embedding_length: K, block_count: 1, feed_forward_length: 96, "attention.head_count": 4 }).map(([key, v]) => [`llama.${key}`, { type: "uint32" as const, value: v }])), // prettier-ignore
    "llama.attention.layer_norm_rms_epsilon": { type: "float32", value: 1e-5 },
  },
  tensors: {
    "token_embd.weight": rows("e", 40, K),
    "blk.0.attn_norm.weight": ones,
    "blk.0.ffn_norm.weight": ones,
    "output_norm.weight": ones,
    ...Object.fromEntries(["attn_q", "attn_k", "attn_v", "attn_output"].map((name) => [`blk.0.${name}.weight`, rows(name, K, K)])),
    ...Object.fromEntries(["ffn_gate", "ffn_up"].map((name) => [`blk.0.${name}.weight`, rows(name, 96, K)])),
    "blk.0.ffn_down.weight": rows("down", K, 96),
  },
});

const files = new Map<string, Uint8Array>([
  ["/small.onnx", small],
  ["/apart.onnx", apart],
  ["/folder/w.bin", weightBytes],
  ["/x.gguf", gguf],
]);
let server: Server;
let at = "";
const asked: string[] = [];
beforeAll(async () => {
  server = createServer((request, response) => {
    const [path, query] = request.url!.split("?");
    const bytes = files.get(path);
    const range = query === "whole" ? undefined : /^bytes=(\d+)-(\d+)$/.exec(request.headers.range ?? "");
    asked.push(`${path} ${range === undefined || range === null ? "whole" : `${range[1]}-${range[2]}`}`);
    if (bytes === undefined) return void response.writeHead(404).end();
    if (query === "stall") return void response.writeHead(200, { "content-length": bytes.length }).write(bytes.subarray(0, 100));
    if (query === "short") {
      response.writeHead(200, { "content-length": bytes.length });
      return void response.write(bytes.subarray(0, 100), () => response.destroy());
    }
    if (range === undefined || range === null) return void response.writeHead(200, { "content-length": bytes.length }).end(bytes);
    const [from, to] = [Number(range[1]), Math.min(Number(range[2]), bytes.length - 1)];
    response.writeHead(206, { "content-range": `bytes ${from}-${to}/${bytes.length}` }).end(bytes.subarray(from, to + 1));
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  at = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
});
afterAll(async () => {
  server.closeAllConnections();
  await new Promise((resolve) => server.close(resolve));
});

test.each(["/small.onnx", "/small.onnx?whole", "/apart.onnx", "/apart.onnx?whole"])("%s out of the network", async (path) => {
  const seen: string[] = [];
  const session = await loadModel(new URL(at + path), { onProgress: ({ stage, done, total }) => seen.push(`${stage} ${done}/${total}`) });
  expect(await first(session)).toBeCloseTo(wanted, 4);
  const bytes = files.get(path.split("?")[0])!.length;
  expect(seen).toContain(`read ${bytes}/${bytes}`);
  expect(seen.at(-1)).toBe("prepare 1/1");
  await session.release();
});

test("a GGUF file by ranges, and whole where the server has none", async () => {
  asked.length = 0;
  const session = await loadModel(`${at}/x.gguf`);
  const logits = session.decoder().prefill([1, 2, 3]).slice();
  expect(asked.every((line) => !line.endsWith("whole"))).toBe(true);
  expect(asked.length).toBeGreaterThan(8);
  await session.release();
  const whole = await loadModel(`${at}/x.gguf?whole`);
  expect(whole.decoder().prefill([1, 2, 3])).toEqual(logits);
  await whole.release();
});

test.each([
  ["/none.onnx", "E_IO", /404/],
  ["/small.onnx?short", "E_IO", /expected a file/],
  ["/folder/w.bin", "E_ONNX", /./],
])("%s: %s", async (path, code, message) => {
  const error: unknown = await loadModel(at + path).catch((e: unknown) => e);
  expect(error).toMatchObject({ name: "LowbitError", code });
  expect((error as Error).message).toMatch(message);
});

test("a server that is not there", async () => {
  await expect(loadModel("http://127.0.0.1:9/model.onnx")).rejects.toMatchObject({ code: "E_IO" });
});

test("the Cache API keeps what was loaded", async () => {
  const kept = new Map<string, Response>();
  const store = {
    match: async (url: string) => kept.get(url)?.clone(),
    put: async (url: string, response: Response) => void kept.set(url, new Response(await response.arrayBuffer())),
  };
  const scope = globalThis as unknown as { caches?: object };
  await expect(loadModel(`${at}/small.onnx`, { cache: "models" })).rejects.toMatchObject({ code: "E_UNSUPPORTED" });
  scope.caches = { open: async () => store };
  try {
    for (const path of ["/apart.onnx", "/x.gguf"]) {
      await (await loadModel(at + path, { cache: "models" })).release();
      asked.length = 0;
      const session = await loadModel(at + path, { cache: "models" });
      expect(asked).toEqual([]);
      if (path === "/apart.onnx") expect(await first(session)).toBeCloseTo(wanted, 4);
      await session.release();
    }
    await expect(loadModel(`${at}/small.onnx?short`, { cache: "models" })).rejects.toMatchObject({ code: "E_IO" });
    expect([...kept.keys()].some((url) => url.includes("short"))).toBe(false);
  } finally {
    delete scope.caches;
  }
});

test("external data beside bytes", async () => {
  await expect(loadModel(apart)).rejects.toThrow(/give \{ externalData: \{ "folder\/w.bin": bytes \} \}/);
  for (const data of [weightBytes, new Blob([weightBytes.slice()])]) {
    const session = await loadModel(new Blob([apart.slice()]), { externalData: { "folder/w.bin": data } });
    expect(await first(session)).toBeCloseTo(wanted, 4);
    await session.release();
  }
});

/** A backend that counts the layers alive, and calls back when one is made. */
function counting(onMade: () => void = () => undefined): { backend: Backend<SyncLayer>; alive: () => number } {
  let alive = 0;
  const backend: Backend<SyncLayer> = {
    ...reference,
    prepare(...args: Parameters<typeof reference.prepare>) {
      const layer = reference.prepare(...args);
      alive++;
      let live = true;
      const dispose = (): void => {
        if (live) alive--;
        live = false;
        layer.dispose();
      };
      onMade();
      return { ...layer, run: layer.run.bind(layer), explain: layer.explain.bind(layer), dispose, [Symbol.dispose]: dispose };
    },
  };
  return { backend, alive: () => alive };
}

const SIZES: DecoderSizes = { hidden: 64, heads: 4, kvHeads: 2, size: 16, ffn: 96, layers: 2, vocabulary: 160, positions: 64, level: 0 };
const decoderBytes = decoderModel(SIZES);

test.each([["ONNX", decoderBytes], ["GGUF", gguf]])("%s: given up in the middle frees what was made", async (_, bytes) => {
  const stop = new AbortController();
  let made = 0;
  const { backend, alive } = counting(() => ++made === 3 && stop.abort(new Error("enough")));
  const error: unknown = await loadModel(bytes, { backend, signal: stop.signal }).catch((e: unknown) => e);
  expect(error).toMatchObject({ name: "LowbitError", code: "E_ABORTED", cause: stop.signal.reason });
  expect([made, alive()]).toEqual([3, 0]);
  // and without the signal
  const session = await loadModel(bytes, { backend });
  expect(alive()).toBeGreaterThan(3);
  await session.release();
  expect(alive()).toBe(0);
}); // prettier-ignore

test("given up before, and while bytes are awaited", async () => {
  await expect(loadModel(small, { signal: AbortSignal.abort() })).rejects.toMatchObject({ code: "E_ABORTED" });
  const stop = new AbortController();
  const waiting = loadModel(`${at}/small.onnx?stall`, { signal: stop.signal, onProgress: () => stop.abort() });
  await expect(waiting).rejects.toMatchObject({ code: "E_ABORTED" });
});

test("tables of angles lie in the memory of kernels and nowhere else, if nothing else reads them", async () => {
  const backend = await wasm();
  const whole = readModelBytes(decoderBytes);
  const [cos, sin] = whole.proto.graph!.node.find(({ opType }) => opType === "GroupQueryAttention")!.input.slice(7, 9);
  const planOf = (of: typeof whole, on: Backend<SyncLayer>) => makePlan(of, readGraph(of), { backend: on, activations: "auto" });
  const plan = await planOf(whole, backend);
  const tensors = new Map(whole.proto.graph!.initializer.map((tensor) => [tensor.name, tensor]));
  const memory = engineMemory(backend);
  for (const name of [cos, sin]) {
    const table = plan.constants.get(name)!;
    expect(isSlot(table)).toBe(true);
    expect(table.data.buffer).toBe(memory.buffer);
    expect(table.data).toEqual(readFloats(whole, tensors.get(name)!));
    expect(table.dims).toEqual([SIZES.positions, SIZES.size / 2]);
  }
  const slots = (of: typeof plan): string[] => [...of.constants].filter(([, v]) => isSlot(v)).map(([name]) => name);
  expect(slots(plan).sort()).toEqual([cos, sin].sort());
  expect(slots(await planOf(whole, reference))).toEqual([]);
  // an output, and an input of another operator
  const shared = readModelBytes(decoderBytes);
  shared.proto.graph!.output.push(value(cos, T.FLOAT, [SIZES.positions, SIZES.size / 2]), value("minus", T.FLOAT, ["p", "w"]));
  shared.proto.graph!.node.push(node("Neg", [sin], ["minus"]));
  expect(slots(await planOf(shared, backend))).toEqual([]);
  // the plan's memory is given back
  const [region, size] = [slots(plan).map((name) => (plan.constants.get(name) as Slot).address), 4 * SIZES.positions * (SIZES.size / 2)];
  for (const layer of plan.layers) layer.dispose();
  const again = Array.from({ length: 64 }, () => memory.allocate(size).address);
  for (const address of region) expect(again.some((at) => at <= address && address < at + size)).toBe(true);
});

test("memory stays flat over 50 loads and releases, and over 10,000 steps of a decoder", async () => {
  const backend = await wasm();
  const memory = engineMemory(backend);
  const once = async (): Promise<void> => {
    const session = await loadModel(decoderBytes, { backend });
    session.decoder().prefill([1, 2, 3]);
    await session.release();
  };
  for (let i = 0; i < 3; i++) await once();
  const before = memory.buffer.byteLength;
  for (let i = 0; i < 50; i++) await once();
  expect(memory.buffer.byteLength).toBe(before);
  const session = await loadModel(decoderBytes, { backend });
  const decoder = session.decoder({ capacity: 64 });
  decoder.prefill([1, 2, 3]);
  const used = (): number => process.memoryUsage().arrayBuffers;
  let [start, bytes] = [0, 0];
  for (let i = 0; i < 10000; i++) {
    if (decoder.length === 64) decoder.truncate(8);
    decoder.step(i % SIZES.vocabulary);
    if (i === 100) [start, bytes] = [used(), memory.buffer.byteLength];
  }
  expect(memory.buffer.byteLength).toBe(bytes);
  expect(used() - start).toBeLessThan(1 << 20);
  await session.release();
});

test("a worker that ends between two steps is an error that says so, and all can still be released", async () => {
  const workers: { terminate(): Promise<number> }[] = [];
  const plain = process.getBuiltinModule;
  process.getBuiltinModule = ((id: string) => {
    const module = plain.call(process, id) as { Worker?: new (...args: never) => (typeof workers)[number] };
    if (id !== "node:worker_threads") return module;
    const Seen = class extends module.Worker! {
      constructor(...args: never) {
        super(...args);
        workers.push(this);
      }
    };
    return { ...module, Worker: Seen };
  }) as typeof plain;
  const backend = await wasm({ threads: 2 }).finally(() => void (process.getBuiltinModule = plain));
  const session = await loadModel(decoderBytes, { backend });
  const decoder = session.decoder();
  decoder.prefill([1, 2, 3]);
  await workers[0].terminate();
  const message = /expected 1 live workers, got: worker 1 of 1 ended\. Make another backend/;
  expect(() => decoder.step(4)).toThrow(message);
  expect(() => decoder.step(4)).toThrow(message);
  await session.release();
});

const strange = encode(
  model(graph({ input: [value("x", T.FLOAT, [1, K])], output: [value("y", T.FLOAT, [1, K])], node: [node("Hardmax", ["x"], ["y"])] })),
);
test("missing operators: a list, or onnxruntime as its name or module", async () => {
  await expect(loadModel(strange)).rejects.toThrow(/got also Hardmax\. Load it with \{ fallback: "onnxruntime" \}/);
  for (const fallback of ["onnxruntime", ort as never] as const) {
    const session = await loadModel(strange, { fallback });
    expect(session.explain()).toMatchObject({ runtime: "onnxruntime", missing: ["Hardmax"] });
    const { y } = await session.run(feeds);
    expect((y.data as Float32Array).reduce((a, b) => a + b)).toBe(1);
    await expect(session.run({ x: { type: "float32", dims: [2, 1], data: new Float32Array(2) } })).rejects.toMatchObject({ code: "E_RUNTIME" }); // prettier-ignore
    await session.release();
    await expect(session.run(feeds)).rejects.toMatchObject({ code: "E_DISPOSED" });
  }
});
