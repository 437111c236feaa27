// npm run bench -- tuner [model ...]: `tuneLayers` over all products of a model: how long it takes, by how much each
// kind of product became faster as the tuner measured it, and, measured again by turns, how fast the whole model's
// products are with its choices beside the defaults; then the same choices from JSON in another backend.
import { format } from "../formats/index.ts";
import { prepareMatmul, quantize, tensor, wasm, type SyncLayer, type Tuning, type WasmBackend } from "../src/index.ts";
import { gaussian, seededRandom } from "../src/quantize/random.ts";
import { measure, type Candidate, type Row } from "./measure.ts";

interface Model {
  readonly name: string;
  readonly format: string;
  readonly layers: number;
  /** [n, k] of the products of a layer. */
  readonly products: readonly (readonly [number, number])[];
}

const MODELS: readonly Model[] = [
  // a sentence encoder of MiniLM's sizes; q4 and q8
  { name: "encoder-q4", format: "int4_b32", layers: 6, products: [[384, 384], [384, 384], [384, 384], [384, 384], [1536, 384], [384, 1536]] }, // prettier-ignore
  { name: "encoder-q8", format: "int8_row", layers: 6, products: [[384, 384], [384, 384], [384, 384], [384, 384], [1536, 384], [384, 1536]] }, // prettier-ignore
  // kjv-llama
  { name: "llama-q4", format: "uint4_b32_zp", layers: 4, products: [[256, 256], [256, 256], [256, 256], [256, 256], [768, 256], [768, 256], [256, 768]] }, // prettier-ignore
  // the decoder of `npm run bench -- decode`, with two of its layers
  { name: "decoder-q4", format: "int4_b32", layers: 2, products: [[2048, 1024], [1024, 1024], [1024, 1024], [1024, 2048], [3072, 1024], [3072, 1024], [1024, 3072]] }, // prettier-ignore
  { name: "decoder-q2", format: "uint2_b32_zp", layers: 2, products: [[2048, 1024], [1024, 1024], [1024, 1024], [1024, 2048], [3072, 1024], [3072, 1024], [1024, 3072]] }, // prettier-ignore
];
const ROWS = [1, 16, 64];

export async function tunerBench(options: {
  readonly seconds: number;
  readonly cases: readonly string[];
}): Promise<{ rows: Row[]; ratios: Record<string, number>; missing: string[] }> {
  const unknown = options.cases.filter((name) => !MODELS.some((model) => model.name === name));
  if (unknown.length > 0)
    throw new RangeError(`tuner: expected some of ${MODELS.map(({ name }) => name).join(", ")}, got ${unknown.join(", ")}.`);
  const rows: Row[] = [];
  const ratios: Record<string, number> = {};
  const normal = gaussian(seededRandom(1));
  for (const model of MODELS) {
    if (options.cases.length > 0 && !options.cases.includes(model.name)) continue;
    const weights = Array.from({ length: model.layers }, () => model.products)
      .flat()
      .map(([n, k]) => quantize(tensor(Float32Array.from({ length: n * k }, normal), [n, k]), format(model.format as "int4_b32")));
    const layersOf = (backend: WasmBackend): SyncLayer[] =>
      weights.map((w) => prepareMatmul(w, { backend, activations: "int8", kernel: "dot" }));
    const [plain, tuned] = [await wasm(), await wasm({ tune: true })];
    const [before, after] = [layersOf(plain), layersOf(tuned)];
    const report = tuned.tuneLayers(after, { rows: ROWS });
    ratios[`${model.name}: seconds to tune ${report.layers} of ${weights.length} layers`] = report.ms / 1000;
    ratios[`${model.name}: kinds of product`] = report.gains.length;
    ratios[`${model.name}: least gain the tuner saw`] = Math.min(...report.gains);
    ratios[`${model.name}: largest gain`] = Math.max(...report.gains);
    const begin = performance.now();
    const again = await wasm({ tune: JSON.parse(JSON.stringify(tuned.tuning())) as Tuning });
    again.tuneLayers(layersOf(again), { rows: ROWS });
    ratios[`${model.name}: seconds with choices from JSON, weights packed and run`] = (performance.now() - begin) / 1000;
    again.dispose();
    const candidates = ROWS.flatMap((m): Candidate[] => {
      const x = (k: number): Float32Array => Float32Array.from({ length: m * k }, normal);
      const inputs = after.map(({ k }) => x(k));
      const outputs = after.map(({ n }) => new Float32Array(m * n));
      const all = (layers: readonly SyncLayer[]) => (): void => layers.forEach((layer, i) => layer.run(inputs[i], m, outputs[i]));
      return [
        { name: `${model.name}, ${m} rows: default`, run: all(before) },
        { name: `${model.name}, ${m} rows: tuned`, run: all(after) },
      ];
    });
    const times = await measure(candidates, options.seconds);
    rows.push(...times);
    ROWS.forEach((m, i) => (ratios[`${model.name}, ${m} rows: speed over the default`] = times[2 * i].bestMs / times[2 * i + 1].bestMs));
    plain.dispose();
    tuned.dispose();
  }
  return { rows, ratios, missing: [] };
}
