// Models in several runtimes: what a cell of the matrix says, and that the node where two runtimes part is named. A
// runtime that computes one node wrongly is made of onnxruntime-node: it is given a model in which that node is another
// one.
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { readdirSync } from "node:fs";
import { dirname } from "node:path";
import fc from "fast-check";
import { describe, expect, it, vi } from "vitest";
import { create } from "@bufbuild/protobuf";
import type { ModelProto, NodeProto } from "../../src/onnx/file/gen/onnx_pb.ts";
import { NodeProtoSchema } from "../../src/onnx/file/gen/onnx_pb.ts";
import { temporaryFolder } from "../../src/onnx/calibrate/node.ts";
import { readModelBytes, writeModel, writeModelBytes } from "../../src/onnx/index.ts";
import { findChromium } from "../../src/onnx/verify/browser.ts";
import { arithmeticOf, explained } from "../../src/onnx/verify/explain.ts";
import { compareRuntimes } from "../../src/onnx/verify/matrix.ts";
import { findParting } from "../../src/onnx/verify/parting.ts";
import type { Runtime, RuntimeEntry } from "../../src/onnx/verify/runtimes.ts";
import { RUNTIME_NAMES, runtimeEntries, runtimeEntry } from "../../src/onnx/verify/table.ts";
import { T, encode, graph, matmulModel, model, node, raw, value, weights } from "./build.ts";
import { verifyModels } from "./kept.ts";

const w = weights(64 * 8);
const original = encode(matmulModel(raw("w", [64, 8], w), 64, 8));

/** onnxruntime-node, but for the node `name`, whose operator is `opType` here. */
function faulty(name: string, opType: string): RuntimeEntry {
  const entry = runtimeEntry("node");
  return {
    name: "faulty",
    about: "",
    check: () => {},
    async start(options) {
      const runtime = await entry.start(options);
      const open: Runtime["open"] = (bytes, settings) => {
        const opened = readModelBytes(bytes as Uint8Array);
        for (const one of opened.proto.graph!.node) if (one.name === name) one.opType = opType;
        return runtime.open(writeModelBytes(opened), settings);
      };
      return { ...runtime, name: "faulty", open };
    },
  };
}

/** x -> a chain with branches of element-wise nodes n0, n1, ...; each reads one or two values made before. */
function tangle(choices: readonly (readonly [number, number, number])[]): ModelProto {
  const values = ["x"];
  const nodes: NodeProto[] = choices.map(([operator, i, j], at) => {
    const [a, b] = [values[i % values.length], values[j % values.length]];
    const made = `v${at}`;
    const op = ["Tanh", "Sigmoid", "Add", "Mul"][operator % 4];
    values.push(made);
    return node(op, op.length > 3 ? [a] : [a, b], [made], {}, `n${at}`);
  });
  return model(
    graph({
      input: [value("x", T.FLOAT, [1, 16])],
      output: [value(values.at(-1)!, T.FLOAT, [1, 16])],
      initializer: [],
      node: nodes,
    }),
  );
}

const x = { type: "float32", data: weights(16, 7).map((v) => v * 5), dims: [1, 16] };

describe("the node where runtimes part", () => {
  it("is named, whatever the graph: its inputs agree, its output does not", async () => {
    const trusted = await runtimeEntry("node").start({});
    const found: string[] = [];
    try {
      await fc.assert(
        fc.asyncProperty(
          fc.array(fc.tuple(fc.nat(3), fc.nat(40), fc.nat(40)), { minLength: 3, maxLength: 24 }),
          fc.nat(23),
          async (choices, at) => {
            const proto = tangle(choices);
            const name = `n${at % choices.length}`;
            const before = proto.graph!.node.find((one) => one.name === name)!;
            const wrong = await faulty(name, before.input.length === 1 ? "Softplus" : "Sub").start({ fresh: true });
            try {
              const output = proto.graph!.output[0].name;
              const runs = [trusted, wrong].map(async (runtime) =>
                (await (await runtime.open(encode(proto))).run({ x })).outputs.get(output)!,
              );
              const [a, b] = await Promise.all(runs);
              const noise = a.data as Float32Array;
              const error = Math.hypot(...Array.from(noise, (v, i) => v - Number((b.data as Float32Array)[i])));
              const sqnrDb = 20 * Math.log10(Math.hypot(...noise) / error);
              // The node may not matter to the output.
              if (!(sqnrDb < 50)) return;
              const parting = await findParting(encode(proto), { output, feeds: { x }, sqnrDb, limitDb: 50 }, { trusted, other: wrong });
              expect(parting.node).toBe(name);
              expect(parting.inputsDb).toBeGreaterThan(50);
              expect(parting.sqnrDb).toBeLessThan(50);
              found.push(name);
            } finally {
              await wrong.close();
            }
          },
        ),
        { numRuns: 8, seed: 5 },
      );
    } finally {
      await trusted.close();
    }
    expect(found.length).toBeGreaterThan(3);
  });

  it("without intermediate values the reason is said", async () => {
    const trusted = await runtimeEntry("node").start({});
    const deaf: Runtime = { ...trusted, open: () => Promise.reject(new Error("no such output")) };
    const proto = tangle([
      [0, 0, 0],
      [1, 1, 0],
    ]);
    const parting = await findParting(encode(proto), { output: "v1", feeds: { x }, sqnrDb: 3, limitDb: 50 }, { trusted, other: deaf });
    expect(parting).toMatchObject({ node: null, reason: expect.stringMatching(/no such output/) });
    await trusted.close();
  });
});

describe("the matrix", () => {
  const kinds = new Map();
  it("equal runtimes agree; times, memory and versions are there", async () => {
    const report = await verifyModels(original, original.slice(), { samples: 2, runtimes: ["node-disabled", "web"] });
    expect(report.ok).toBe(true);
    expect(report.matrix!.runtimes).toEqual(["node", "node-disabled", "web"]);
    expect(report.matrix!.cells.map(({ model: which, runtime, state, ok }) => [which, runtime, state, ok])).toEqual(
      ["reference", "model"].flatMap((which) => ["node", "node-disabled", "web"].map((runtime) => [which, runtime, "ran", true])),
    );
    for (const cell of report.matrix!.cells) {
      expect(cell.version).toMatch(/^\d+\.\d+/);
      expect(cell.agreementDb).toBeGreaterThan(100);
      expect(cell.loadMs).toBeGreaterThan(0);
      expect(cell.peakBytes).toBeGreaterThan(1e7);
    }
  });
  it("a runtime that disagrees fails, with the node", async () => {
    const proto = tangle([
      [0, 0, 0],
      [2, 0, 1],
      [1, 2, 0],
      [3, 3, 1],
    ]);
    const bytes = encode(proto);
    const { ok, cells } = await compareRuntimes(bytes, bytes, { runtimes: [faulty("n1", "Sub")], feeds: [{ x }], kinds });
    expect(ok).toBe(false);
    expect(cells.find((cell) => cell.model === "model" && cell.runtime === "faulty")).toMatchObject({
      ok: false,
      explained: { arithmetic: "float32", db: 50 },
      parting: { node: "n1", opType: "Add", output: "v3" },
    });
  });
  it("a model that a runtime refuses fails where it is the model, not where it is the reference", async () => {
    const refuses: RuntimeEntry = {
      ...faulty("none", "None"),
      start: async () => ({ ...(await runtimeEntry("node").start({ fresh: true })), open: () => Promise.reject(new Error("too large")) }),
    };
    const { ok, cells } = await compareRuntimes(original, original, {
      runtimes: [refuses],
      feeds: [{ x: { ...x, data: weights(64), dims: [1, 64] } }],
      kinds,
    });
    expect(ok).toBe(false);
    expect(cells.filter((cell) => cell.state === "refused").map(({ error }) => error)).toEqual(["too large", "too large"]);
  });
  it("names: groups, unknown ones, none", async () => {
    expect(runtimeEntries(["webgpu", "node", "webgpu-jsep"]).map(({ name }) => name)).toEqual(["webgpu-native", "webgpu-jsep", "node"]);
    expect(RUNTIME_NAMES).toContain("lowbit");
    await expect(verifyModels(original, original, { runtimes: ["webgl"] })).rejects.toThrow(/expected some of node, .*, got "webgl"/);
    await expect(verifyModels(original, original, { runtimes: [] })).rejects.toThrow(TypeError);
  });
});

describe("what arithmetic explains", () => {
  const withNode = (made: NodeProto): ReturnType<typeof arithmeticOf> => {
    const proto = matmulModel(raw("w", [64, 8], w), 64, 8);
    proto.graph!.node.push(made);
    return arithmeticOf(readModelBytes(encode(proto)));
  };
  it("follows from the graph", () => {
    expect(arithmeticOf(readModelBytes(original))).toBe("float32");
    expect(withNode(node("Cast", ["x"], ["h"], { to: BigInt(T.FLOAT16) }))).toBe("float16");
    expect(withNode(node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]))).toBe("8-bit activations");
    const blocks = (level: bigint): NodeProto =>
      create(NodeProtoSchema, { ...node("MatMulNBits", ["x"], ["n"], { accuracy_level: level }), domain: "com.microsoft" });
    expect(withNode(blocks(4n))).toBe("8-bit activations");
    expect(withNode(blocks(0n))).toBe("float32");
  });
  it("rounded activations explain as much as the file is away from the float model", () => {
    expect(explained("float32", 3).db).toBe(50);
    expect(explained("8-bit activations", 60).db).toBe(30);
    expect(explained("8-bit activations", 13).db).toBeCloseTo(10, 1);
    expect(explained("8-bit activations", -5).db).toBe(0);
  });
});

it("a browser that is missing is an error before anything runs, with what to do", async () => {
  vi.stubEnv("LOWBIT_CHROMIUM", "/nowhere/chromium");
  try {
    expect(() => findChromium()).toThrow(/a browser at LOWBIT_CHROMIUM, got no file \/nowhere\/chromium\. Correct the variable/);
    await expect(verifyModels(original, original, { runtimes: ["webgpu"] })).rejects.toMatchObject({ code: "E_RUNTIME" });
  } finally {
    vi.unstubAllEnvs();
  }
});

it.skipIf(process.platform === "win32")("a browser that does not start is named, with what it was asked for", async () => {
  const folder = mkdtempSync(join(tmpdir(), "lowbit-browser-"));
  try {
    const browser = join(folder, "browser");
    writeFileSync(browser, `#!/bin/sh\necho "$@" > ${folder}/asked\nexit 7\n`, { mode: 0o755 });
    vi.stubEnv("LOWBIT_CHROMIUM", browser);
    await expect(verifyModels(original, original, { runtimes: ["webgpu"] })).rejects.toMatchObject({
      code: "E_RUNTIME",
      message: expect.stringContaining(`expected the browser ${browser} to start, got `),
    });
    const asked = readFileSync(join(folder, "asked"), "utf8").split(" ");
    expect(asked).toEqual(expect.arrayContaining(["--headless", "--enable-unsafe-webgpu", "--no-first-run"]));
  } finally {
    vi.unstubAllEnvs();
    rmSync(folder, { recursive: true, force: true });
  }
});

/** A browser is part of few machines, and WebGPU of fewer; where CI has the one, the other must work. */
const hasBrowser = ((): boolean => {
  try {
    return findChromium() !== "";
  } catch {
    return false;
  }
})();
describe.runIf(hasBrowser)("a page", () => {
  it(
    "runs models with and without data beside them as onnxruntime-node does, and goes on after one that fails",
    { timeout: 60_000 },
    async ({ skip }) => {
      const entry = runtimeEntry("webgpu-native");
      const runtime = await entry.start({ fresh: true }).catch((error: Error) => {
        if (process.env.CI === "true") throw error;
        console.log(`SKIPPED: a page: ${error.message}`);
        return null;
      });
      if (runtime === null) return skip();
      const folder = temporaryFolder("lowbit-page-");
      try {
        const path = folder.file("m.onnx");
        await writeModel(readModelBytes(original), path, { externalData: true });
        expect(readdirSync(dirname(path)).length).toBe(2);
        const feed = { x: { type: "float32", data: weights(64, 3), dims: [1, 64] } };
        const want = Array.from({ length: 8 }, (_, j) => feed.x.data.reduce((sum, v, i) => sum + v * w[i * 8 + j], 0));
        await expect(runtime.open(Uint8Array.of(1, 2, 3))).rejects.toThrow();
        for (const given of [original, path]) {
          const session = await runtime.open(given);
          expect([session.inputNames, session.outputNames]).toEqual([["x"], ["y"]]);
          const { outputs, ms } = await session.run(feed);
          const { type, dims, data } = outputs.get("y")!;
          expect([type, dims, ms > 0]).toEqual(["float32", [1, 8], true]);
          want.forEach((v, i) => expect((data as Float32Array)[i]).toBeCloseTo(v, 4));
          await expect(session.run({ x: { ...feed.x, dims: [8, 8] } })).rejects.toThrow();
        }
        expect([runtime.name, runtime.version, runtime.note]).toEqual(["webgpu-native", expect.stringMatching(/^\d+\.\d+/), expect.stringMatching(/^Chromium \d+.*, /)]); // prettier-ignore
        expect(await runtime.peakBytes()).toBeGreaterThan(1e7);
      } finally {
        await runtime.close();
        folder.remove();
      }
      await expect(runtime.open(original)).rejects.toThrow();
    },
  );
});
