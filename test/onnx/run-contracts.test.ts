// Contracts of what runs a model: which data are seen and which are kept back, how many runs a search takes, what is
// reported on the way and at the end.
import { writeFileSync } from "node:fs";
import { describe, expect, test, vi } from "vitest";
import { format } from "../../formats/index.ts";
import { quantize, tensor } from "../../src/index.ts";
import { temporaryFolder } from "../../src/onnx/calibrate/node.ts";
import {
  applyPasses,
  benchModels,
  calibrationFrom,
  decideWeights,
  measureSensitivity,
  modelLayers,
  placeWeights,
  planBudget,
  readModelBytes,
  type Algorithm,
  type Feeds,
} from "../../src/onnx/index.ts";
import { serve } from "../../src/onnx/verify/browser.ts";
import { compareRuntimes } from "../../src/onnx/verify/matrix.ts";
import type { RuntimeEntry } from "../../src/onnx/verify/runtimes.ts";
import { runtimeEntry } from "../../src/onnx/verify/table.ts";
import { rtn } from "../../src/quantize/index.ts";
import { T, encode, graph, matmulModel, model, node, raw, value, weights } from "./build.ts";
import { quantizeModelBytes } from "./kept.ts";

const K = 32;
/** x -> product -> Relu -> product -> y. */
const chain = (): Uint8Array =>
  encode(
    model(
      graph({
        input: [value("x", T.FLOAT, ["b", K])],
        output: [value("y", T.FLOAT, ["b", K])],
        initializer: [raw("w1", [K, K], weights(K * K, 1)), raw("w2", [K, K], weights(K * K, 2))],
        node: [node("MatMul", ["x", "w1"], ["a"], {}, "one"), node("Relu", ["a"], ["r"]), node("MatMul", ["r", "w2"], ["y"], {}, "two")],
      }),
    ),
  );
const feeds = (count: number, rows = 64): Feeds[] =>
  Array.from({ length: count }, (_, i) => ({ x: { type: "float32", data: weights(rows * K, 10 + i), dims: [rows, K] } }));

describe("calibration", () => {
  test("an algorithm that corrects the drift of earlier layers goes through them in order, asked or not", async () => {
    const codes = async (sequential?: boolean, algorithm: Algorithm = "refit") => {
      const m = readModelBytes(chain());
      const options = sequential === undefined ? {} : { sequential };
      const decided = await decideWeights(m, modelLayers(m), () => ({ format: format("int3_b32"), algorithm }), feeds(4), options);
      return [...decided.values()].map(({ packed }) => [...packed.codes]);
    };
    expect(await codes()).toEqual(await codes(true));
    await expect(codes(false)).rejects.toThrow(/refit/);
    // others see the float model unless they are asked to
    expect(await codes(undefined, "gptq")).toEqual(await codes(false, "gptq"));
    expect(await codes(undefined, "gptq")).not.toEqual(await codes(true, "gptq"));
  });
  test.each(["maxTokens", "every"])("%s is a positive integer", async (name) => {
    const m = readModelBytes(chain());
    for (const wrong of [0, -1, 1.5])
      await expect(decideWeights(m, modelLayers(m), () => ({ format: format("int4_b32"), algorithm: "gptq" }), feeds(1), { [name]: wrong })).rejects.toThrow(new RegExp(`${name}: expected a positive integer, got ${wrong}`)); // prettier-ignore
  });
  test("a target is judged on an eighth of the data, one batch at least, which no quantizer sees", async () => {
    for (const [batches, seen] of [
      [1, 1],
      [2, 1],
      [8, 7],
      [11, 10],
      [12, 10],
      [16, 14],
      [24, 21],
    ]) {
      // prettier-ignore
      const rows = new Set<number>();
      const algorithm: Algorithm = ({ statistics }) => (rows.add(statistics!.rows), rtn());
      await quantizeModelBytes(chain(), { format: "int8_b32", algorithm, targetSqnr: -50, calibration: feeds(batches, 2), calibrate: { holdOut: 0 } }); // prettier-ignore
      expect([batches, ...rows]).toEqual([batches, 2 * seen]);
    }
  });
  test("progress is a share of the bytes of the weights, from nothing to all of them", async () => {
    for (const algorithm of ["mse", "gptq"] as const) {
      const seen: { done: number; total: number; layer?: string }[] = [];
      const data = algorithm === "gptq" ? { calibration: feeds(3) } : {};
      await quantizeModelBytes(chain(), { format: "int4_b32", algorithm, ...data, onProgress: (one) => void seen.push(one) });
      const total = 4 * (K * K + K * K);
      expect(seen.length).toBeGreaterThan(1);
      for (const { done, total: all } of seen) expect([all, done >= 0 && done <= total]).toEqual([total, true]);
      expect(seen.filter(({ layer }) => layer?.includes("(quantize)")).map(({ done, layer }) => [layer, done])).toEqual([
        ["one (quantize)", 0],
        ["two (quantize)", total / 2],
      ]);
    }
  });
});

describe("searches over a model", () => {
  /** y = x + the sum of what the layers that are quantized add: layer i adds i + 1. */
  const sum = (added: number): Uint8Array =>
    encode(model(graph({ input: [value("x", T.FLOAT, [1])], output: [value("y", T.FLOAT, [1])], initializer: [raw("c", [1], Float32Array.of(added))], node: [node("Add", ["x", "c"], ["y"])] }))); // prettier-ignore
  const one: Feeds[] = [{ x: { type: "float32", data: Float32Array.of(1), dims: [1] } }];
  test.each([
    // all alone; three groups of seven split three times, twice where one run is missing for a third
    [9, 10, 10, 9],
    [20, 10, 10, 6],
    [20, 9, 9, 5],
    [20, 5, 4, 2],
    [3, 64, 4, 3],
  ])("sensitivity of %i layers in %i runs: %i are used, %i groups", async (count, maxRuns, runs, groups) => {
    const layers = Array.from({ length: count }, (_, i) => `l${i}`);
    const quantizeWith = async (rules: readonly { match: unknown }[]): Promise<Uint8Array> => {
      const kept = new Set(rules.map(({ match }) => String(match)));
      return sum(layers.reduce((all, name, i) => all + (kept.has(name) ? 0 : i + 1), 0));
    };
    const report = await measureSensitivity(sum(0), quantizeWith as never, { layers, feeds: one, maxRuns });
    expect(report.runs).toBe(runs);
    expect(report.layers.reduce((all, { together }) => all + 1 / together, 0)).toBeCloseTo(groups, 9);
    expect(report.sqnrDb).toBeCloseTo(-20 * Math.log10((count * (count + 1)) / 2), 9);
    // what stands alone has its own noise, and the noisiest layer is found first
    for (const { name, sqnrDb, together } of report.layers)
      if (together === 1) expect(sqnrDb).toBeCloseTo(-20 * Math.log10(Number(name.slice(1)) + 1), 9);
    if (count <= maxRuns) expect(report.layers.map(({ name }) => name)).toEqual(layers.toReversed());
  });
  test("a budget says how many layers have which format", async () => {
    const m = readModelBytes(chain());
    const { notes, rules } = await planBudget(m, feeds(1), { bitsPerWeight: 7.5, candidates: ["int4_b32", "int8_b32"], importance: new Map([["one", 1], ["two", 1e6]]) }); // prettier-ignore
    expect(rules.map(({ match, format: f }) => [match, f])).toEqual([
      ["one", "int4_b32"],
      ["two", "int8_b32"],
    ]);
    expect(notes).toEqual(["7.000 stored bits per weight (budget 7.5): 1 x int4_b32, 1 x int8_b32"]);
    const both = await planBudget(m, feeds(1), { bitsPerWeight: 9, candidates: ["int4_b32", "int8_b32"], importance: new Map() });
    expect(both.notes).toEqual(["9.000 stored bits per weight (budget 9): 2 x int8_b32"]);
  });
});

describe("awq says how many groups had better stay", () => {
  /** A norm before each product; a weight of zeros is what it is with any scales. */
  const normed = (zeros: boolean[]): Uint8Array => {
    const n = 16;
    const init = zeros.flatMap((on, i) => [
      raw(
        `g${i}`,
        [K],
        Float32Array.from({ length: K }, (_, j) => (j % 5 === 0 ? 30 : 1)),
      ),
      raw(`w${i}`, [K, n], on ? new Float32Array(K * n) : weights(K * n, i + 3)),
    ]);
    const nodes = zeros.flatMap((_, i) => [
      node("LayerNormalization", ["x", `g${i}`], [`h${i}`]),
      node("MatMul", [`h${i}`, `w${i}`], [i === 0 ? "y" : `y${i}`], {}, `mm${i}`),
    ]);
    const output = zeros.map((_, i) => value(i === 0 ? "y" : `y${i}`, T.FLOAT, ["b", n]));
    return encode(model(graph({ input: [value("x", T.FLOAT, ["b", K])], output, initializer: init, node: nodes })));
  };
  test.each([
    [[false], ["scales for int4_b32 of 1 products in 1 groups folded into what is before them"]],
    [
      [false, true],
      ["scales for int4_b32 of 1 products in 1 groups folded into what is before them", "1 groups are best left alone"],
    ],
    [
      [true, true],
      ["no products were found whose scales something before them can take; nothing changed", "2 groups are best left alone"],
    ],
  ])("weights of zeros: %j", async (zeros, want) => {
    const notes = await applyPasses(readModelBytes(normed(zeros)), ["awq"], { verify: false, calibration: calibrationFrom(feeds(2)) });
    expect(notes).toEqual(want.map((note) => `awq: ${note}`));
  });
});

test("a float of a checkpoint with another shape is left, with both shapes; axes of one do not count", async () => {
  const placed = async (shape: number[]) => {
    const proto = matmulModel(raw("w", [K, 8], weights(K * 8)), K, 8);
    proto.graph!.initializer.push(raw("m.norm.weight", [1, 4], weights(4)));
    proto.graph!.node[0].name = "m.fc";
    proto.graph!.node.push(node("Add", ["m.norm.weight", "m.norm.weight"], ["z"]));
    const m = readModelBytes(encode(proto));
    const w = weights(K * 8);
    const turned = Float32Array.from(w, (_, i) => w[(i % K) * 8 + Math.floor(i / K)]);
    const layers = new Map([["m.fc", async () => ({ packed: quantize(tensor(turned, [8, K]), format("int8_b32")) })]]);
    const count = shape.reduce((a, b) => a * b, 1);
    const tensors = new Map([["m.norm.weight", { dtype: "F32", shape, values: async () => new Float32Array(count) }]]);
    const { floats, left } = await placeWeights(m, { layers, tensors });
    return { floats, left };
  };
  expect(await placed([4])).toEqual({ floats: [{ tensor: "m.norm.weight", to: "m.norm.weight", changed: true }], left: [] });
  expect(await placed([3])).toEqual({ floats: [], left: [{ name: "m.norm.weight", reason: "m.norm.weight is [1, 4], not [3]" }] });
});

describe("runtimes", () => {
  test("one model alone, with inputs that it can take", async () => {
    const folder = temporaryFolder("lowbit-bench-");
    try {
      const path = folder.file("table.onnx");
      const gather = model(graph({ input: [value("ids", T.INT64, [64])], output: [value("y", T.FLOAT, [64, 4])], initializer: [raw("t", [3, 4], weights(12))], node: [node("Gather", ["t", "ids"], ["y"])] })); // prettier-ignore
      writeFileSync(path, encode(gather));
      const { cells, inputs, random, runs } = await benchModels([path], { runs: 1 });
      expect([cells.map(({ error, ratio }) => [error, ratio]), inputs, random, runs]).toEqual([[[undefined, 1]], { ids: [64] }, true, 1]);
    } finally {
      folder.remove();
    }
  });
  test.each([
    ["node-disabled", "node"],
    ["other", "node-disabled"],
  ])("where %s parts, %s says what is right", async (name, trusted) => {
    const bytes = encode(model(graph({ input: [value("x", T.FLOAT, [4])], output: [value("y", T.FLOAT, [4])], node: [node("Tanh", ["x"], ["h"], {}, "t"), node("Abs", ["h"], ["y"], {}, "a")] }))); // prettier-ignore
    const real = runtimeEntry("node");
    const wrong: RuntimeEntry = {
      ...{ name, about: "", check: () => {} },
      async start(options) {
        const runtime = await real.start(options);
        const open: typeof runtime.open = (given, settings) => {
          const m = readModelBytes(given as Uint8Array);
          for (const made of m.proto.graph!.node) if (made.name === "t") made.opType = "Sigmoid";
          return runtime.open(encode(m.proto), settings);
        };
        return { ...runtime, name, open };
      },
    };
    const starts = ["node", "node-disabled"].map((one) => vi.spyOn(runtimeEntry(one), "start"));
    try {
      const x = { type: "float32", data: Float32Array.of(-2, -1, 1, 2), dims: [4] };
      const { ok, cells } = await compareRuntimes(bytes, bytes, { runtimes: [wrong], feeds: [{ x }], kinds: new Map() });
      expect([ok, cells.find((cell) => cell.runtime === name)?.parting?.node]).toEqual([false, "t"]);
      const disabled = starts[1].mock.calls.length;
      expect(disabled > 0).toBe(trusted === "node-disabled");
    } finally {
      for (const start of starts) start.mockRestore();
    }
  });
  test("the page's server gives what was published, in order, and nothing else", async () => {
    const site = await serve("ort.webgpu.bundle.min.mjs");
    const folder = temporaryFolder("lowbit-site-");
    try {
      const file = folder.file("weights.bin");
      writeFileSync(file, Uint8Array.of(7, 8));
      const addresses = [site.publish(Uint8Array.of(1, 2, 3)), site.publish(file), site.publish(Uint8Array.of(4))];
      const get = async (path: string) => {
        const response = await fetch(site.url + path);
        return [response.status, [...new Uint8Array(await response.arrayBuffer())]] as const;
      };
      expect(await Promise.all(addresses.map(get))).toEqual([[200, [1, 2, 3]], [200, [7, 8]], [200, [4]]]); // prettier-ignore
      for (const path of ["/data/3", "/data/x", "/ort/../../../package.json", "/ort/none.js", `/data${file}`, "/other"])
        expect([path, (await get(path))[0]]).toEqual([path, 404]);
      expect((await get("/favicon.ico"))[0]).toBe(204);
      const page = await fetch(site.url);
      expect([page.headers.get("content-type"), await page.text()]).toEqual(["text/html", expect.stringContaining('src="/page.js"')]);
      expect((await fetch(`${site.url}/page.js`)).headers.get("content-type")).toBe("text/javascript");
    } finally {
      await site.close();
      folder.remove();
    }
  });
});
