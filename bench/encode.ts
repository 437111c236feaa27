// npm run bench -- encode [encoder|ocr] [--seconds S]: models without a cache, one thread, this runtime beside
// onnxruntime-web and onnxruntime-node on the same files, by turns. `encoder`: a sentence encoder of MiniLM's sizes (6
// layers of 384, 12 heads, 128 tokens), as exporters spell it out, in float32, q8 and q4 of this library. `ocr`: the
// recogniser of PP-OCRv4, q8.
import { readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { scratchFolder } from "../scripts/scratch.mjs";
import { toBinary } from "@bufbuild/protobuf";
import type { NodeProto, TensorProto } from "../src/onnx/file/gen/onnx_pb.ts";
import { ModelProtoSchema } from "../src/onnx/file/gen/onnx_pb.ts";
import { quantizeModel } from "../src/onnx/index.ts";
import { gaussian, seededRandom } from "../src/quantize/random.ts";
import { loadModel, type RuntimeTensor } from "../src/runtime/index.ts";
import { graph, model, node, raw, T, value, type AttributeValue } from "../test/onnx/build.ts";
import { measure, type Candidate, type Row } from "./measure.ts";
import { RECOGNISER } from "./ocr.ts";
import { load } from "./peers.ts";

const [LAYERS, HIDDEN, HEADS, FFN, TOKENS, VOCABULARY] = [6, 384, 12, 1536, 128, 30522];

export function encoderModel(): Uint8Array {
  const normal = gaussian(seededRandom(1));
  const initializer: TensorProto[] = [];
  const nodes: NodeProto[] = [];
  const add = (tensor: TensorProto): string => (initializer.push(tensor), tensor.name);
  const floats = (name: string, dims: number[], of: () => number): string =>
    add(raw(name, dims, Float32Array.from({ length: dims.reduce((a, b) => a * b, 1) }, of)));
  const put = (opType: string, input: string[], name: string, attributes: Record<string, AttributeValue> = {}): string => {
    nodes.push(node(opType, input, [name], attributes, name));
    return name;
  };
  const integers = (name: string, values: number[]): string => add(raw(name, [values.length], BigInt64Array.from(values, BigInt), T.INT64));
  const number = (name: string, v: number): string => add(raw(name, [], Float32Array.of(v)));
  const dense = (x: string, name: string, n: number, k: number): string => {
    const w = floats(`${name}.weight`, [k, n], () => normal() / Math.sqrt(k));
    return put("Add", [floats(`${name}.bias`, [n], () => normal() / 50), put("MatMul", [x, w], `${name}/product`)], name);
  };
  const norm = (x: string, name: string): string => {
    const parts = [floats(`${name}.weight`, [HIDDEN], () => 1 + normal() / 20), floats(`${name}.bias`, [HIDDEN], () => normal() / 20)];
    return put("LayerNormalization", [x, ...parts], name, { axis: -1n, epsilon: 1e-12 });
  };
  const [split, joined] = [integers("split", [0, 0, HEADS, HIDDEN / HEADS]), integers("joined", [0, 0, HIDDEN])];
  const [root, scale, one, half] = [number("root", Math.SQRT2), number("scale", 1 / Math.sqrt(HIDDEN / HEADS)), number("c1", 1), number("c2", 0.5)]; // prettier-ignore
  const mask = put(
    "Unsqueeze",
    [put("Cast", ["attention_mask"], "mask/float", { to: BigInt(T.FLOAT) }), integers("axes", [1, 2])],
    "mask/4",
  );
  const added = put("Mul", [put("Sub", [one, mask], "mask/turned"), number("lowest", -3.4028234663852886e38)], "mask/added");
  let x = put("Gather", [floats("words", [VOCABULARY, HIDDEN], () => normal() / 20), "input_ids"], "words/rows");
  x = norm(put("Add", [x, floats("positions", [TOKENS, HIDDEN], () => normal() / 20)], "embedded"), "embedded/norm");
  for (let l = 0; l < LAYERS; l++) {
    const p = `layer.${l}`;
    const heads = (part: string, perm: number[]): string =>
      put("Transpose", [put("Reshape", [dense(x, `${p}.${part}`, HIDDEN, HIDDEN), split], `${p}.${part}/split`)], `${p}.${part}/t`, { perm: { ints: perm } }); // prettier-ignore
    const scores = put("MatMul", [heads("query", [0, 2, 1, 3]), heads("key", [0, 2, 3, 1])], `${p}.scores`);
    const masked = put("Add", [put("Mul", [scores, scale], `${p}.scaled`), added], `${p}.masked`);
    const context = put("MatMul", [put("Softmax", [masked], `${p}.p`, { axis: -1n }), heads("value", [0, 2, 1, 3])], `${p}.context`);
    const rows = put("Reshape", [put("Transpose", [context], `${p}.context/t`, { perm: { ints: [0, 2, 1, 3] } }), joined], `${p}.rows`);
    x = norm(put("Add", [dense(rows, `${p}.output`, HIDDEN, HIDDEN), x], `${p}.sum`), `${p}.norm`);
    const up = dense(x, `${p}.up`, FFN, HIDDEN);
    const erf = put("Add", [put("Erf", [put("Div", [up, root], `${p}.over`)], `${p}.erf`), one], `${p}.erf1`);
    const gelu = put("Mul", [put("Mul", [up, erf], `${p}.twice`), half], `${p}.gelu`);
    x = norm(put("Add", [dense(gelu, `${p}.down`, HIDDEN, FFN), x], `${p}.sum2`), `${p}.norm2`);
  }
  put("Identity", [x], "last_hidden_state");
  const ids = ["input_ids", "attention_mask"].map((name) => value(name, T.INT64, [1, TOKENS]));
  const output = [value("last_hidden_state", T.FLOAT, [1, TOKENS, HIDDEN])];
  return toBinary(ModelProtoSchema, model(graph({ input: ids, output, initializer, node: nodes }), { opset: 17, ir: 8 }));
}

type Feeds = Record<string, RuntimeTensor>;

interface Run {
  readonly name: string;
  readonly path: string;
  readonly feeds: Feeds;
  /** This runtime's activations. */
  readonly activations: "auto" | "int8";
}

interface Foreign {
  InferenceSession: {
    create(source: unknown, options: object): Promise<{ run(feeds: object): Promise<Record<string, { data: Float32Array }>> }>;
  };
  Tensor: new (type: string, data: unknown, dims: readonly number[]) => object;
  env: { wasm: { numThreads?: number } };
}

async function foreign(name: string, { path, feeds }: Run): Promise<() => Promise<Float32Array>> {
  const loaded = (await load(name)) as unknown as Foreign & { default?: Foreign };
  const ort = loaded.InferenceSession === undefined ? loaded.default! : loaded;
  const isWeb = name === "onnxruntime-web";
  if (isWeb) ort.env.wasm.numThreads = 1;
  const options = { intraOpNumThreads: 1, interOpNumThreads: 1, logSeverityLevel: 3, executionProviders: [isWeb ? "wasm" : "cpu"] };
  const session = await ort.InferenceSession.create(isWeb ? new Uint8Array(readFileSync(path)) : path, options);
  const tensors = Object.fromEntries(Object.entries(feeds).map(([key, t]) => [key, new ort.Tensor(t.type, t.data, t.dims)]));
  return async () => Object.values(await session.run(tensors))[0].data;
}

/** Signal over the difference, dB. */
export function sqnr(wanted: Float32Array, got: Float32Array): number {
  let [signal, noise] = [0, 0];
  for (let i = 0; i < wanted.length; i++) {
    signal += wanted[i] ** 2;
    noise += (wanted[i] - got[i]) ** 2;
  }
  return 10 * Math.log10(signal / noise);
}

async function encoders(folder: string): Promise<Run[]> {
  const path = join(folder, "encoder.onnx");
  writeFileSync(path, encoderModel());
  const random = seededRandom(2);
  const ids = BigInt64Array.from({ length: TOKENS }, () => BigInt(Math.floor(random() * VOCABULARY)));
  const feeds: Feeds = {
    input_ids: { type: "int64", dims: [1, TOKENS], data: ids },
    attention_mask: { type: "int64", dims: [1, TOKENS], data: new BigInt64Array(TOKENS).fill(1n) },
  };
  const runs: Run[] = [{ name: "encoder float32", path, feeds, activations: "auto" }];
  for (const dtype of ["q8", "q4"] as const) {
    const out = join(folder, `encoder_${dtype}.onnx`);
    await quantizeModel(path, out, { dtype });
    runs.push({ name: `encoder ${dtype}`, path: out, feeds, activations: dtype === "q4" ? "int8" : "auto" });
  }
  return runs;
}

async function recogniser(folder: string): Promise<Run[]> {
  const path = join(folder, "rec_q8.onnx");
  await quantizeModel(RECOGNISER, path, { dtype: "q8" });
  const random = seededRandom(3);
  const data = Float32Array.from({ length: 3 * 48 * 320 }, () => 2 * random() - 1);
  const feeds: Feeds = { x: { type: "float32", dims: [1, 3, 48, 320], data } };
  return [
    { name: "recogniser float32", path: RECOGNISER, feeds, activations: "auto" },
    { name: "recogniser q8", path, feeds, activations: "auto" },
  ];
}

export async function encode(options: {
  readonly seconds: number;
  readonly cases: readonly string[];
}): Promise<{ rows: Row[]; ratios: Record<string, number>; missing: string[] }> {
  const folder = scratchFolder("encode");
  const wanted = (name: string): boolean => options.cases.length === 0 || options.cases.includes(name);
  const ratios: Record<string, number> = {};
  const rows: Row[] = [];
  try {
    const runs = [...(wanted("encoder") ? await encoders(folder) : []), ...(wanted("ocr") ? await recogniser(folder) : [])];
    for (const run of runs) {
      const session = await loadModel(run.path, { activations: run.activations });
      const own = async (): Promise<Float32Array> => Object.values(await session.run(run.feeds))[0].data as Float32Array;
      // the native one first: both packages register backends in one list, and a web one that comes first is what
      // both would run
      const peers: { name: string; run: () => Promise<Float32Array> }[] = [];
      for (const name of ["onnxruntime-node", "onnxruntime-web"]) peers.push({ name, run: await foreign(name, run) });
      ratios[`${run.name}: SQNR to onnxruntime-node, dB`] = sqnr((await peers[0].run()).slice(), await own());
      const candidates: Candidate[] = [{ name: `${run.name}: lowbit`, run: own }];
      for (const peer of peers) candidates.push({ name: `${run.name}: ${peer.name}`, run: peer.run });
      // a whole model takes V8 longer to optimise than the rows that measure() is for
      for (const { run: once } of candidates) for (let i = 0; i < 10; i++) await once();
      const times = await measure(candidates, options.seconds);
      rows.push(...times);
      peers.forEach(({ name }, i) => (ratios[`${run.name}: x ${name}`] = times[i + 1].bestMs / times[0].bestMs));
      const slowest = session.explain().steps.filter(({ kernel }) => kernel === "loops");
      ratios[`${run.name}: steps without a kernel`] = slowest.length;
      await session.release();
    }
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
  return { rows, ratios, missing: [] };
}
