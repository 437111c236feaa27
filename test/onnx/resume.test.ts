// Runs that are killed and go on, and runs that are spread: the file is that of one run, byte for byte; nothing is made
// twice but the layer at work; journals and shards of other runs are refused by name.
import { existsSync, mkdtempSync, readFileSync, readdirSync, renameSync, rmSync, statSync, truncateSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, beforeEach, expect, test } from "vitest";
import { replaceCalls, type FileCalls } from "../../src/files/calls.ts";
import { mergeShards, quantizeModel, type Feeds, type QuantizeModelOptions } from "../../src/onnx/index.ts";
import { encodeHalf } from "../../src/onnx/file/half.ts";
import { nbitsFormat, nbitsPlan } from "../../src/onnx/targets/nbits.ts";
import { inFormat } from "../../src/onnx/weights.ts";
import { fromBytes, toBytes } from "../../src/tensor/container.ts";
import { quantize } from "../../src/tensor/quantize/index.ts";
import { int4 } from "../../formats/int4.ts";
import { openLog, readLog } from "../../src/onnx/journal/log.ts";
import { LIBRARY_VERSION } from "../../src/onnx/journal/version.ts";
import { encode, graph, model, node, raw, T, value, weights } from "./build.ts";

const K = 32;
const folder = mkdtempSync(join(tmpdir(), "lowbit-resume-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));
const unsynced = (calls: FileCalls): FileCalls => ({ ...calls, fsync: () => undefined });
beforeEach(() => replaceCalls(unsynced));
afterEach(() => replaceCalls());

/** A table, six products (two of one weight, two of one input) with a bias, a convolution apart. */
const proto = (seed = 0, wide = K) =>
  model(
    graph({
      input: [value("x", T.FLOAT, ["batch", K])],
      output: [value("y", T.FLOAT, ["batch", 16])],
      initializer: [
        raw("wa", [K, wide], weights(K * wide, 1 + seed)),
        raw("ba", [wide], weights(wide, 2 + seed)),
        raw("wb", [wide, K], weights(K * wide, 3 + seed)),
        raw("wc", [K, K], weights(K * K, 4 + seed)),
        raw("wd", [K, 16], weights(K * 16, 5 + seed)),
        raw("we", [K, 16], weights(K * 16, 6 + seed)),
      ],
      node: [
        node("MatMul", ["x", "wa"], ["p"], {}, "a"),
        node("Add", ["p", "ba"], ["h"]),
        node("Relu", ["h"], ["r"]),
        node("MatMul", ["r", "wb"], ["b"], {}, "b"),
        node("MatMul", ["b", "wc"], ["c"], {}, "c"),
        node("Tanh", ["c"], ["t"]),
        node("MatMul", ["t", "wc"], ["c2"], {}, "c2"),
        node("MatMul", ["c2", "wd"], ["d"], {}, "d"),
        node("MatMul", ["c2", "we"], ["e"], {}, "e"),
        node("Add", ["d", "e"], ["y"]),
      ],
    }),
  );
const input = join(folder, "model.onnx");
writeFileSync(input, encode(proto()));
const batches: Feeds[] = [11, 12, 13, 14].map((seed) => ({ x: { type: "float32", data: weights(64 * K, seed), dims: [64, K] } }));

let places = 0;
const place = (name = "out.onnx"): string => join(mkdtempSync(join(folder, `${places++}-`)), name);
const files = (output: string): string[] => readdirSync(join(output, "..")).sort();
const bytes = (output: string): Buffer =>
  Buffer.concat(
    files(output)
      .filter((name) => /^out\.onnx(_data)?$/.test(name))
      .map((name) => readFileSync(join(output, "..", name))),
  );
async function once(options: QuantizeModelOptions): Promise<Buffer> {
  const output = place();
  await quantizeModel(input, output, options);
  return bytes(output);
}
const code = (work: Promise<unknown>): Promise<{ code?: string; message: string }> =>
  work.then(
    () => ({ message: "no error" }),
    (error) => error,
  );

const RECIPES: Readonly<Record<string, QuantizeModelOptions>> = {
  q4: { dtype: "q4" },
  q8: { dtype: "q8" },
  q4f16: { dtype: "q4f16", externalData: true },
  stored: { format: "mxfp4", target: "stored" },
  gptq: { dtype: "q4", algorithm: "gptq", calibration: batches, calibrate: { memory: 40_000 } },
  mrgptq: { format: "int4_b32", algorithm: "mrgptq", calibration: batches, calibrate: { holdOut: 0 } },
  "awq by pass": { dtype: "q4", passes: ["awq"], calibration: batches },
  mixed: {
    dtype: "q4",
    calibration: batches,
    rules: [
      { match: "c*", algorithm: "gptq" },
      { match: "d", keep: true },
    ],
  },
  static: { activations: "uint8", calibration: batches },
};
const SEQUENTIAL: Readonly<Record<string, QuantizeModelOptions>> = {
  "gptq in sequence": { dtype: "q4", algorithm: "gptq", sequential: true, calibration: batches },
  refit: { format: "int3_b16", algorithm: "refit", calibration: batches },
};

class Kill extends Error {}

/**
 * Runs work whose file calls (or writes into a journal) all fail from the one `after` on: what is on the disk then is
 * what a kill leaves.
 */
async function killed(work: () => Promise<unknown>, after: number, inJournal = false): Promise<boolean> {
  let calls = 0;
  replaceCalls(
    (node) =>
      new Proxy(unsynced(node), {
        get: (target, name: keyof FileCalls) =>
          function (...args: unknown[]): unknown {
            if (inJournal && calls < after && (name !== "write" || args[4] === undefined)) calls--;
            if (calls++ >= after) throw new Kill();
            return (target[name] as (...args: unknown[]) => unknown)(...args);
          },
      }),
  );
  const { pid } = process;
  // the next run is another process
  Object.defineProperty(process, "pid", { value: 2 ** 22 + 1, configurable: true, writable: true });
  try {
    await work();
    return false;
  } catch (error) {
    for (let at: unknown = error; at !== undefined; at = (at as Error).cause) if (at instanceof Kill) return true;
    throw error;
  } finally {
    Object.defineProperty(process, "pid", { value: pid, configurable: true, writable: true });
    replaceCalls(unsynced);
  }
}

const weightsIn = (path: string): number => {
  if (!existsSync(path)) return 0;
  const log = readLog(path);
  log.close();
  return log.records.filter(({ meta }) => meta.kind === "weight").length;
};

test.each(Object.entries({ ...RECIPES, ...SEQUENTIAL }))(
  "%s, killed again and again: the same bytes, whole layers kept",
  async (_, options) => {
    const expected = await once(options);
    const output = place();
    const journal = `${output}.journal`;
    let [kills, done] = [0, 0];
    for (let after = 8; ; after += 29) {
      const died = await killed(() => quantizeModel(input, output, { ...options, resume: true }), after);
      if (!died) break;
      kills++;
      // what was done stays done
      expect(weightsIn(journal)).toBeGreaterThanOrEqual(existsSync(output) ? 0 : done);
      done = weightsIn(journal);
      if (existsSync(output)) break;
      expect(kills).toBeLessThan(200);
    }
    expect(kills).toBeGreaterThan(1);
    expect(bytes(output).equals(expected)).toBe(true);
    // the next run beside it takes away what is left of the killed one
    await quantizeModel(input, join(output, "../next.onnx"), { dtype: "q8" });
    expect(files(output).filter((name) => !/^(out|next)\.onnx(_data)?$/.test(name))).toEqual([]);
  },
);

test("killed at 20 random moments: the same bytes, no layer made twice more than once a kill", async () => {
  let state = 20;
  const random = (): number => (state = (Math.imul(state, 1664525) + 1013904223) >>> 0) / 2 ** 32;
  for (const recipe of [RECIPES.gptq, SEQUENTIAL["gptq in sequence"]]) {
    const expected = await once(recipe);
    const made = new Map<string, number>();
    const starts = ({ layer }: { layer: string }): void => {
      const name = /^(.*) \(quantize\)$/.exec(layer)?.[1];
      if (name !== undefined) made.set(name, (made.get(name) ?? 0) + 1);
    };
    let output = place();
    let kills = 0;
    let whole = 0;
    // a run that gets through before it is killed is followed by one from the beginning
    while (kills < 20) {
      const run = () => quantizeModel(input, output, { ...recipe, resume: true, force: true, onProgress: starts });
      if (await killed(run, 10 + Math.floor(random() * 70))) {
        kills++;
        if (!existsSync(output)) continue;
      }
      expect(bytes(output).equals(expected)).toBe(true);
      whole++;
      output = place();
    }
    await quantizeModel(input, output, { ...recipe, resume: true, onProgress: starts });
    expect(bytes(output).equals(expected)).toBe(true);
    // c2 reads the weight of c, which is made once
    expect([...made.keys()].sort()).toEqual(["a", "b", "c", "d", "e"].slice(0, made.size));
    const computed = [...made.values()].reduce((a, b) => a + b, 0);
    expect(computed).toBeGreaterThanOrEqual(made.size * (whole + 1));
    expect(computed).toBeLessThanOrEqual(made.size * (whole + 1) + kills);
  }
});

test.each(Object.entries(RECIPES))("%s in three shards: the same bytes", async (_, options) => {
  const expected = await once(options);
  const output = place();
  const made: string[] = [];
  for (const index of [2, 3, 1]) {
    const report = await quantizeModel(input, output, { ...options, shard: `${index}/3` });
    expect(report.outputs).toEqual([`${output}.${index}-of-3.shard`]);
    made.push(...report.layers.filter((layer) => layer.format !== null).map((layer) => layer.name));
  }
  const again = await quantizeModel(input, output, { ...options, shard: "2/3", resume: true });
  expect(again.notes.join()).toContain("whole already");
  await expect(quantizeModel(input, output, { ...options, shard: "2/3" })).rejects.toMatchObject({ code: "E_EXISTS" });
  expect(new Set(made).size).toBe(made.length);
  await mergeShards(input, output, options.calibration === undefined ? {} : { calibration: options.calibration });
  expect(bytes(output).equals(expected)).toBe(true);
});

test("a weight that comes back is in this run's object of its format, so that its codes are copied", () => {
  for (const half of [false, true]) {
    const own = nbitsFormat(int4, 32, half);
    const packed = quantize({ data: weights(128), shape: [2, 64], stride: [64, 1], offset: 0 }, own);
    const back = { packed: fromBytes(toBytes(packed)) };
    expect(inFormat(back, own).packed.format).toBe(own);
    expect(nbitsPlan(inFormat(back, own).packed.format, 64)).toMatchObject({ asIs: true });
    expect(inFormat(back, nbitsFormat(int4, 32, !half)).packed).toBe(back.packed);
  }
});

test("weights of 16 bits come back from shards with scales of 16 bits", async () => {
  const half = (seed: number) => raw(`w${seed}`, [64, 64], Uint16Array.from(weights(64 * 64, seed), encodeHalf), T.FLOAT16);
  const made = [1, 2].map((i) => node("MatMul", [i === 1 ? "x" : "h1", `w${i}`], [`h${i}`], {}, `mm${i}`));
  const io = { input: [value("x", T.FLOAT16, ["b", 64])], output: [value("h2", T.FLOAT16, ["b", 64])] };
  const path = join(place(), "../half.onnx");
  writeFileSync(path, encode(model(graph({ ...io, initializer: [half(1), half(2)], node: made }))));
  const recipes: QuantizeModelOptions[] = [
    { dtype: "q4" },
    { dtype: "q4", symmetric: false },
    { dtype: "bnb4" },
    { format: "int4_b32", target: "qdq" },
    { format: "int4_b32", algorithm: "mse" },
  ];
  for (const options of recipes) {
    const [whole, output] = [place(), place()];
    await quantizeModel(path, whole, options);
    for (const shard of ["1/2", "2/2"]) await quantizeModel(path, output, { ...options, shard });
    await mergeShards(path, output);
    expect(bytes(output).equals(bytes(whole)), JSON.stringify(options)).toBe(true);
  }
});

test("a shard that was killed goes on, and one that failed without resume leaves nothing", async () => {
  const options: QuantizeModelOptions = { ...RECIPES.gptq, shard: "1/2" };
  const output = place();
  expect(await killed(() => quantizeModel(input, output, { ...options, resume: true }), 12, true)).toBe(true);
  const [left] = files(output);
  expect(left).toBe("out.onnx.1-of-2.shard.journal");
  const before = weightsIn(join(output, "..", left));
  expect(before).toBeGreaterThan(0);
  const report = await quantizeModel(input, output, { ...options, resume: true });
  expect(report.notes).toContain(`resumed: ${before} weights were taken from the journal of an earlier run`);
  const other = place();
  let seen = 0;
  const full = (node: FileCalls): FileCalls => ({
    ...unsynced(node),
    write: (...args) => {
      if (seen++ > 8) throw Object.assign(new Error("no space"), { code: "ENOSPC" });
      return node.write(...args);
    },
  });
  replaceCalls(full);
  const error = await code(quantizeModel(input, other, options));
  replaceCalls(unsynced);
  expect(error).toMatchObject({ code: "E_IO" });
  expect(error.message).toContain("a full disk");
  expect(files(other)).toEqual([]);
});

test("a journal of another recipe, model or data is refused, and says what differs", async () => {
  const output = place();
  expect(await killed(() => quantizeModel(input, output, { dtype: "q4", resume: true }), 12, true)).toBe(true);
  const refused = async (from: string, options: QuantizeModelOptions) => {
    const error = await code(quantizeModel(from, output, { ...options, resume: true }));
    expect(error).toMatchObject({ code: "E_EXISTS" });
    expect(error.message).toContain(`${output}.journal: expected the work of this run, got `);
    return error.message;
  };
  expect(await refused(input, { dtype: "q8" })).toContain('another recipe: dtype "q4" instead of "q8"');
  expect(await refused(input, { dtype: "q4", blockSize: 64 })).toContain("blockSize none instead of 64");
  expect(await refused(input, { dtype: "q4", algorithm: "gptq", calibration: batches })).toContain("other calibration data");
  const other = join(folder, "other.onnx");
  writeFileSync(other, encode(proto(100)));
  expect(await refused(other, { dtype: "q4" })).toContain("another model");
  await quantizeModel(input, output, { dtype: "q4", resume: true });
  expect(files(output)).toEqual(["out.onnx"]);
});

test("a weight that changed is found though the graph is the same", async () => {
  const wide = 1024; // too large to be hashed with the graph
  const [one, two] = [join(folder, "one.onnx"), join(folder, "two.onnx")];
  const graphs = [proto(0, wide), proto(0, wide)];
  graphs[1].graph!.initializer[0].rawData = graphs[1].graph!.initializer[0].rawData!.map((byte, i) => (i === 0 ? byte ^ 1 : byte));
  writeFileSync(one, encode(graphs[0]));
  writeFileSync(two, encode(graphs[1]));
  const output = place();
  expect(await killed(() => quantizeModel(one, output, { dtype: "q4", resume: true }), 23, true)).toBe(true);
  const error = await code(quantizeModel(two, output, { dtype: "q4", resume: true }));
  expect(error.message).toContain("expected the weights of this model, got others for layer a.");
  for (const shard of ["1/2", "2/2"]) await quantizeModel(one, output, { dtype: "q4", shard });
  const merged = await code(mergeShards(two, output));
  expect(merged).toMatchObject({ code: "E_CONTAINER" });
  expect(merged.message).toContain("got others for layer a.");
});

test("a journal that is no journal, or that was cut anywhere, is not trusted", async () => {
  const output = place();
  writeFileSync(`${output}.journal`, "something else entirely");
  expect(await code(quantizeModel(input, output, { dtype: "q4", resume: true }))).toMatchObject({ code: "E_CONTAINER" });
  rmSync(`${output}.journal`);
  const expected = await once({ dtype: "q4" });
  expect(await killed(() => quantizeModel(input, output, { dtype: "q4", resume: true }), 23, true)).toBe(true);
  const whole = readFileSync(`${output}.journal`);
  for (let cut = 0; cut < whole.length; cut += Math.ceil(whole.length / 23)) {
    writeFileSync(`${output}.journal`, whole);
    truncateSync(`${output}.journal`, cut);
    await quantizeModel(input, output, { dtype: "q4", resume: true, force: true });
    expect(bytes(output).equals(expected)).toBe(true);
  }
  // a flipped bit in a record: it, and what follows it, is made again
  rmSync(output);
  const flipped = Buffer.from(whole);
  flipped[whole.length - 100] ^= 4;
  writeFileSync(`${output}.journal`, flipped);
  await quantizeModel(input, output, { dtype: "q4", resume: true });
  expect(bytes(output).equals(expected)).toBe(true);
});

test("missing, unfinished, foreign and stale shards are refused by name", async () => {
  const output = place();
  const shard = (i: number) => `${output}.${i}-of-3.shard`;
  expect((await code(mergeShards(input, output))).message).toContain("expected shards beside it (out.onnx.1-of-N.shard ...), got none");
  for (const i of [1, 3]) await quantizeModel(input, output, { dtype: "q4", shard: `${i}/3` });
  const missing = await code(mergeShards(input, output));
  expect(missing).toMatchObject({ code: "E_IO" });
  expect(missing.message).toContain("got none of out.onnx.2-of-3.shard. Run it again (--shard 2/3 --resume)");
  await quantizeModel(input, output, { dtype: "q4", blockSize: 64, shard: "2/3" });
  const stale = await code(mergeShards(input, output));
  expect(stale).toMatchObject({ code: "E_CONTAINER" });
  expect(stale.message).toContain(
    `${shard(2)}: expected a shard of the same run as ${shard(1)}, got another recipe: blockSize 64 instead of none`,
  );
  await quantizeModel(input, output, { dtype: "q4", shard: "2/3", force: true });
  const { size } = statSync(shard(3));
  const whole = readFileSync(shard(3));
  truncateSync(shard(3), size - 5);
  expect((await code(mergeShards(input, output))).message).toContain(`${shard(3)}: expected a whole shard, got one that ends early`);
  // another version: its name is in the first record, whose checksum is then no longer right, so a log is made anew
  const old = readLog(shard(1));
  rmSync(shard(3));
  const other = openLog(shard(3), false);
  other.add({ ...old.records[0].meta, version: "0.0.1", shard: { index: 3, count: 3 } });
  other.add({ kind: "end" });
  old.close();
  other.close();
  expect((await code(mergeShards(input, output))).message).toContain(
    `${shard(3)}: expected a shard of the same run as ${shard(1)}, got version 0.0.1 instead of ${LIBRARY_VERSION}. Make it again (--shard 3/3 --force)`,
  );
  writeFileSync(shard(3), readFileSync(shard(1)));
  expect((await code(mergeShards(input, output))).message).toContain("expected shard 3 of 3, got shard 1 of 3 under this name");
  writeFileSync(shard(3), whole);
  renameSync(shard(2), `${output}.2-of-4.shard`);
  expect((await code(mergeShards(input, output))).message).toContain("got of 3 and of 4");
  renameSync(`${output}.2-of-4.shard`, shard(2));
  await mergeShards(input, output);
  expect(bytes(output).equals(await once({ dtype: "q4" }))).toBe(true);
});

test("what cannot be spread or compared says so", async () => {
  const output = place();
  const of = (options: QuantizeModelOptions) => code(quantizeModel(input, output, options));
  expect((await of({ dtype: "q4", shard: "4/3" })).message).toContain("expected I/N with 1 <= I <= N");
  expect((await of({ dtype: "q4", shard: "0/3" })).message).toContain("shard: expected I/N");
  expect((await of({ dtype: "fp16", shard: "1/2" })).message).toContain("which one run copies as fast as many");
  expect((await of({ dtype: "q4", targetSqnr: 20, calibration: batches, shard: "1/2" })).message).toContain("no targetSqnr beside it");
  expect((await of({ ...SEQUENTIAL["gptq in sequence"], shard: "1/2" })).message).toContain("no sequential beside it");
  expect((await of({ ...SEQUENTIAL.refit, shard: "1/2" })).message).toContain("where each waits for the one before");
  expect((await of({ dtype: "q4", algorithm: () => ({}) as never, resume: true })).message).toContain("expected algorithms by name");
  expect(files(output)).toEqual([]);
});

test("the version of journals is that of the package", () => {
  const { version } = JSON.parse(readFileSync(new URL("../../package.json", import.meta.url), "utf8")) as { version: string };
  expect(LIBRARY_VERSION).toBe(version);
});
