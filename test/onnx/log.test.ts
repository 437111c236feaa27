// Logs of records byte by byte: what is written is what the format says, and of a file that is cut or changed anywhere
// the records before are read, no other. And what makes the run that wrote it the same as another one.
import { createHash } from "node:crypto";
import { mkdtempSync, readFileSync, rmSync, symlinkSync, truncateSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, describe, expect, test } from "vitest";
import { replaceCalls } from "../../src/files/calls.ts";
import { openLog, readLog, type RecordMeta } from "../../src/onnx/journal/log.ts";
import { hashFeeds, hashModel } from "../../src/onnx/journal/hashes.ts";
import { differenceOf, identityOf, readIdentity } from "../../src/onnx/journal/identity.ts";
import { readModelBytes, type Feeds } from "../../src/onnx/index.ts";
import { readFloats } from "../../src/onnx/file/values.ts";
import { encode, matmulModel, raw, weights } from "./build.ts";
import { parseShard, shardPath } from "../../src/onnx/journal/shard.ts";

const folder = mkdtempSync(join(tmpdir(), "lowbit-log-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));
afterEach(() => replaceCalls());

/** A record as the comment above log.ts has it. */
function recordOf(meta: RecordMeta, ...parts: Uint8Array[]): Buffer {
  const json = Buffer.from(JSON.stringify(meta));
  const head = Buffer.alloc(12);
  head.writeUInt32LE(json.length, 0);
  head.writeBigUInt64LE(BigInt(parts.reduce((sum, part) => sum + part.length, 0)), 4);
  const body = Buffer.concat([head, json, ...parts]);
  return Buffer.concat([body, createHash("sha256").update(body).digest()]);
}
const bytes = (...values: number[]): Uint8Array => Uint8Array.from(values);
const metas: RecordMeta[] = [{ kind: "a", n: 1 }, { kind: "b" }, { kind: "c", text: "ü" }];
const data = [bytes(1, 2, 3), bytes(), bytes(...new Array<number>(300).fill(7))];
const whole = Buffer.concat([Buffer.from("LOWBLOG1"), ...metas.map((meta, i) => recordOf(meta, data[i]))]);
const path = join(folder, "log");
const kinds = (at: string): string[] => {
  const log = readLog(at);
  try {
    return log.records.map(({ meta }) => meta.kind);
  } finally {
    log.close();
  }
};

test("what is added is in the file as the format says, and read again", () => {
  const log = openLog(path, false);
  metas.forEach((meta, i) => log.add(meta, i === 2 ? [data[2].subarray(0, 100), data[2].subarray(100)] : [data[i]]));
  expect(log.path).toBe(path);
  expect(Buffer.compare(readFileSync(path), whole)).toBe(0);
  log.records.forEach((record, i) => expect([record.meta, Buffer.from(log.data(record))]).toEqual([metas[i], Buffer.from(data[i])]));
  log.close();
  const again = readLog(path);
  expect(again.records.map(({ meta, at, jsonBytes, dataBytes }) => [meta, at, jsonBytes, dataBytes])).toEqual(log.records.map(({ meta, at, jsonBytes, dataBytes }) => [meta, at, jsonBytes, dataBytes])); // prettier-ignore
  again.records.forEach((record, i) => {
    expect(record.sum).toBe(log.records[i].sum);
    expect(Buffer.from(again.data(record))).toEqual(Buffer.from(data[i]));
  });
  again.close();
});

test("cut anywhere, the whole records before are there, and the next run goes on behind them", () => {
  const ends = [8, ...metas.map((_, i) => 8 + metas.slice(0, i + 1).reduce((sum, meta, j) => sum + recordOf(meta, data[j]).length, 0))];
  for (let length = 0; length <= whole.length; length += length < 120 ? 1 : 13) {
    writeFileSync(path, whole.subarray(0, length));
    const wanted = metas.slice(0, ends.filter((end) => end <= length).length - 1 < 0 ? 0 : ends.filter((end) => end <= length).length - 1).map(({ kind }) => kind); // prettier-ignore
    expect(kinds(path), `${length}`).toEqual(wanted);
    const log = openLog(path, true);
    expect(log.records.map(({ meta }) => meta.kind)).toEqual(wanted);
    log.add({ kind: "next" }, [bytes(9)]);
    log.close();
    expect(kinds(path)).toEqual([...wanted, "next"]);
    expect(readFileSync(path).length).toBe((wanted.length === 0 ? 8 : ends[wanted.length]) + recordOf({ kind: "next" }, bytes(9)).length);
  }
});

test("a byte that changed ends what is read at its record", () => {
  const [first, second] = metas.slice(0, 2).map((meta, i) => recordOf(meta, data[i]).length);
  for (const [at, left] of [
    [8, 0],
    [12, 0],
    [20, 0],
    [8 + first - 1, 0],
    [8 + first, 1],
    [8 + first + second - 40, 1],
    [whole.length - 1, 2],
  ]) {
    // prettier-ignore
    const changed = Buffer.from(whole);
    changed[at] ^= 4;
    writeFileSync(path, changed);
    expect(kinds(path), `${at}`).toEqual(metas.slice(0, left).map(({ kind }) => kind));
  }
});

describe("what is none of ours", () => {
  test.each(["LOWBLOG2", "x", "LOWBLOx", "GGUF...."])("%s", (text) => {
    writeFileSync(path, text);
    expect(() => readLog(path)).toThrow("expected a file that lowbit wrote");
    expect(() => openLog(path, true)).toThrow("expected a file that lowbit wrote");
    expect(readFileSync(path, "utf8")).toBe(text);
  });
  test("an empty file and the beginning of a magic are", () => {
    for (const text of ["", "L", "LOWBLOG"]) {
      writeFileSync(path, text);
      expect(kinds(path)).toEqual([]);
    }
  });
  test("without resume what was there goes", () => {
    writeFileSync(path, whole);
    openLog(path, false).close();
    expect(readFileSync(path).length).toBe(0);
  });
  test("a link, a folder, a place that is not there", () => {
    symlinkSync(join(folder, "elsewhere"), join(folder, "link"));
    for (const at of [join(folder, "link"), folder, join(folder, "no", "log")]) expect(() => openLog(at, true)).toThrow(/E_IO|write a file/); // prettier-ignore
  });
});

test("a record that another process wrote over is no data", () => {
  writeFileSync(path, whole);
  const log = readLog(path);
  const changed = Buffer.from(whole);
  changed[8 + 12 + 20] ^= 1;
  writeFileSync(path, changed);
  expect(() => log.data(log.records[0])).toThrow("expected the record that was written at 8");
  truncateSync(path, 30);
  expect(() => log.data(log.records[2])).toThrow("got other bytes");
  log.close();
});

test("records of more than a mebibyte are summed whole", () => {
  const large = new Uint8Array((3 << 20) + 5).map((_, i) => (i * 7) & 255);
  const log = openLog(path, false);
  const record = log.add({ kind: "large" }, [large]);
  expect(record.sum).toBe(readFileSync(path).subarray(-32).toString("hex"));
  expect(Buffer.compare(log.data(record), large)).toBe(0);
  log.close();
  expect(kinds(path)).toEqual(["large"]);
  const torn = readFileSync(path);
  torn[2 << 20] ^= 1;
  writeFileSync(path, torn);
  expect(kinds(path)).toEqual([]);
});

test("16 MiB at most wait for a sync, unless the log need not last", () => {
  const part = new Uint8Array(6 << 20);
  const counted = (lasting: boolean): number[] => {
    let syncs = 0;
    replaceCalls((calls) => ({ ...calls, fsync: () => void syncs++ }));
    const log = openLog(path, false, lasting);
    const counts = [1, 2, 3, 4, 5, 6].map(() => (log.add({ kind: "p" }, [part]), syncs));
    log.sync();
    log.close();
    return [...counts, syncs];
  };
  expect(counted(true)).toEqual([0, 0, 1, 1, 1, 2, 3]);
  expect(counted(false)).toEqual([0, 0, 0, 0, 0, 0, 1]);
});

test("shards by their words", () => {
  expect(["1/1", "2/3", "10/12"].map(parseShard)).toEqual([{ index: 1, count: 1 }, { index: 2, count: 3 }, { index: 10, count: 12 }]); // prettier-ignore
  for (const bad of ["0/2", "3/2", "1", "1/0", "a/b", "1/2/3", "", "-1/2"]) expect(() => parseShard(bad), bad).toThrow();
  const names = [1, 2, 3].map((index) => shardPath("out.onnx", { index, count: 3 }));
  expect(new Set(names).size).toBe(3);
  for (const [i, name] of names.entries()) expect(name).toMatch(new RegExp(`${i + 1}-of-3\\.shard$`));
});

describe("what makes two runs the same", () => {
  const made = (change: (proto: ReturnType<typeof matmulModel>) => void = () => undefined, wide = 64) => {
    const proto = matmulModel(raw("w", [64, wide], weights(64 * wide)), 64, wide);
    change(proto);
    return readModelBytes(encode(proto));
  };
  const set = (proto: ReturnType<typeof matmulModel>, at: number) => (proto.graph!.initializer[0].rawData[at] ^= 1);
  test("the graph, small tensors, the sizes of others", () => {
    const same = hashModel(made());
    expect(same).toMatch(/^[0-9a-f]{64}$/);
    expect(hashModel(made())).toBe(same);
    expect(hashModel(made((proto) => void set(proto, 5)))).not.toBe(same);
    expect(hashModel(made((proto) => void (proto.graph!.node[0].name = "other")))).not.toBe(same);
    expect(hashModel(made((proto) => void (proto.graph!.initializer[0].name = "v")))).not.toBe(same);
    expect(hashModel(made((proto) => void (proto.producerName = "other")))).not.toBe(same);
    // of 64 KiB; one row more is a large tensor, whose numbers are compared layer by layer
    expect(hashModel(made((proto) => void set(proto, 5), 256))).not.toBe(hashModel(made(undefined, 256)));
    expect(hashModel(made((proto) => void set(proto, 5), 257))).toBe(hashModel(made(undefined, 257)));
    expect(hashModel(made(undefined, 257))).not.toBe(hashModel(made(undefined, 258)));
    const opened = made(undefined, 257);
    hashModel(opened);
    expect(readFloats(opened, opened.proto.graph!.initializer[0]).length).toBe(64 * 257);
  });
  test("names, types, sizes and numbers of calibration data, not the order of names", () => {
    const x = { type: "float32", dims: [2], data: Float32Array.of(1, 2) };
    const hash = hashFeeds([{ x, y: x }]);
    expect(hashFeeds([{ y: x, x }])).toBe(hash);
    const others: Feeds[][] = [[{ x, z: x }], [{ x, y: { ...x, type: "float16" } }], [{ x, y: { ...x, dims: [1, 2] } }], [{ x, y: { ...x, data: Float32Array.of(1, 3) } }], [{ x }, { y: x }], [], [{ x, y: x }, { x, y: x }], [{ x, y: { ...x, data: ["1", "2"] } }], [{ x, y: { ...x, data: [1, 2] } }]]; // prettier-ignore
    expect(new Set([hash, ...others.map(hashFeeds)]).size).toBe(others.length + 1);
    const part = new Float32Array([0, 1, 2, 0]).subarray(1, 3);
    expect(hashFeeds([{ x: { ...x, data: part }, y: x }])).toBe(hash);
  });
  test("differences in words", () => {
    const of = (options: object, data: Feeds[] | string | null = null, model = made()) =>
      identityOf(model, { dtype: "q4", ...options }, data);
    const ours = of({});
    expect(ours).toMatchObject({ kind: "run", recipe: { version: 1, dtype: "q4" }, calibration: "" });
    expect(of({ calibration: "c.npz" }, [{}]).recipe).toMatchObject({ calibration: "c.npz" });
    expect(of({ calibration: () => [] }, [{}]).recipe).not.toHaveProperty("calibration");
    expect(of({}, "sums").calibration).toBe("sums");
    const cases: [object, string | undefined][] = [
      [ours, undefined],
      [of({ force: true, followLinks: false, statistics: "s", calibration: "c" }), undefined],
      [{ ...ours, version: "0" }, `version 0 instead of ${ours.version}`],
      [of({}, null, made((proto) => void set(proto, 1))), "another model"],
      [of({}, [{}]), "other calibration data"],
      [of({ blockSize: 64 }), "another recipe: blockSize 64 instead of none"],
      [{ ...of({}), recipe: undefined }, "another recipe: version none instead of 1"],
      [{ ...ours, recipe: { ...ours.recipe, dtype: "q2" } }, 'another recipe: dtype "q2" instead of "q4"'],
    ]; // prettier-ignore
    for (const [theirs, words] of cases) expect(differenceOf(theirs, ours)).toBe(words);
    for (const options of [{ algorithm: () => null }, { rules: [{ match: "a", algorithm: () => null }] }]) expect(() => of(options)).toThrow("expected algorithms by name"); // prettier-ignore
    expect(of({ algorithm: "mse", rules: [{ match: "a", algorithm: "hqq" }] }).recipe).toMatchObject({ algorithm: "mse" });
    expect(readIdentity("p", ours)).toBe(ours);
    for (const meta of [undefined, { kind: "weight", model: "m", recipe: {} }, { kind: "run", recipe: {} }, { kind: "run", model: "m" }, { kind: "run", model: "m", recipe: "r" }]) expect(() => readIdentity("p", meta)).toThrow("expected a journal or shard"); // prettier-ignore
  });
});
