// Matrices read by bands of rows: the planes of the whole, whatever the scales reach over. Rows by index.
import { closeSync, mkdtempSync, openSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, test } from "vitest";
import { defineBlock, float32, format, int4, LowbitError, type BlockFormat, type Format } from "../../formats/index.ts";
import { dequantize, gatherRows, quantize, tensor, transpose } from "../../src/index.ts";
import { quantizeBands, isApart } from "../../src/tensor/quantize/bands.ts";
import { quantizeMeasured } from "../../src/tensor/quantize/measure.ts";
import { nibbleThreads, threadsTake } from "../../src/tensor/quantize/nibble-threads.ts";
import { normalArray } from "../helpers/random.ts";

const [rows, k] = [11, 24];
const x = normalArray(rows * k, 4);
/** Bands of `bandRows`; what was read before is overwritten, as the source may do. */
function source(bandRows: number, values = x) {
  const counts: number[] = [];
  const held = new Float32Array(rows * k);
  const band = (row: number, count: number) => {
    counts.push(count);
    held.set(values.subarray(row * k, (row + count) * k));
    return { data: held, shape: [count, k], stride: [k, 1], offset: 0 };
  };
  return { shape: [rows, k], rows, k, bandRows, band, counts };
}
const spans = (span: BlockFormat["scales"][0]["span"]) => defineBlock({ element: int4, scales: [{ format: float32, span }] });
const formats: [string, Format, number][] = [
  ["a scale a row", format("int8_row"), 1],
  ["a scale a block", format("uint4_b8_zp"), 1],
  ["blocks that end with the row", spans(16), 1],
  ["tiles of [3, 8]", spans([3, 8]), 3],
  ["one scale", format("int8_tensor"), 1],
  ["two levels, the outer one of all", format("nvfp4"), 1],
  ["no scale", format("float8_e4m3fn"), 1],
];

test.each(formats)("%s: the same planes and sums by bands of any height", (_, f, step) => {
  const whole = quantizeMeasured(tensor(x, [rows, k]), f);
  for (const bandRows of [1, 2, 4, 5, 100]) {
    const s = source(bandRows);
    const made = quantizeBands(s, f);
    expect(made.packed, `bands of ${bandRows}`).toEqual(whole.packed);
    expect(made.noise / whole.noise).toBeCloseTo(1, 9);
    expect(made.signal / whole.signal).toBeCloseTo(1, 9);
    // no band is higher than asked for, but for a whole tile
    expect(Math.max(...s.counts)).toBeLessThanOrEqual(Math.max(bandRows, step));
  }
});

test("scales that reach over bands, and those that do not", () => {
  expect([1, 2, 3, 6, 7].map((n) => isApart(spans([3, 8]), n))).toEqual([false, false, true, true, false]);
  expect(["row", 8, "tensor"].map((span) => isApart(spans(span as "row"), 5))).toEqual([true, true, false]);
  expect([isApart(format("nvfp4"), 4), isApart(format("int4"), 4)]).toEqual([false, true]);
});

test("all values as one row: blocks go on from row to row", () => {
  const f = spans(36);
  const flat = quantizeMeasured(tensor(x, [rows * k]), f).packed;
  for (const bandRows of [1, 3, 4, 7]) expect(quantizeBands(source(bandRows), f, {}, true).packed).toEqual(flat);
});

test("a weight that is not finite is named by its row and column", () => {
  for (const [row, column] of [
    [0, 0],
    [4, 23],
    [10, 7],
  ] as const)
    // prettier-ignore
    for (const flat of [false, true]) {
      const bad = x.slice();
      bad[row * k + column] = NaN;
      expect(() => quantizeBands(source(4, bad), spans(8), {}, flat)).toThrow(
        expect.objectContaining({ code: "E_VALUE", message: expect.stringContaining(`got NaN at [${row}, ${column}]`) as string }),
      );
    }
});

test("threads take what their loop makes, and give what one thread gives; a file that they cannot read is null", async () => {
  const q4 = format("int4_b32") as BlockFormat;
  const take = (f: Format, options: object = { arithmetic: "ort" }, wide = 64, high = 8) =>
    threadsTake({ fd: 0, offset: 0, rows: high, k: wide, inRows: true }, f, options);
  expect([take(q4), take(format("uint4_b32_zp"), { arithmetic: "ort", rangeRule: "minmax" })]).toEqual([true, true]);
  for (const f of ["int4", "int4_b32_float16", "int8_b32", "int4_row", "ggml_q4_0"]) expect(take(format(f)), f).toBe(false);
  expect([take(q4, {}), take(q4, undefined, 63), take(q4, undefined, 64, 3), take(q4, undefined, 64, 4)]).toEqual([false, false, false, true]); // prettier-ignore
  const folder = mkdtempSync(join(tmpdir(), "lowbit-threads-"));
  const path = join(folder, "w");
  const w = normalArray(8 * 64, 5);
  writeFileSync(path, Buffer.concat([Buffer.alloc(12), Buffer.from(w.buffer)]));
  const fd = openSync(path, "r");
  const threads = nibbleThreads(2)!;
  try {
    const options = { arithmetic: "ort" } as const;
    const jobs = [true, false].map((inRows) => threads.quantize({ fd, offset: 12, rows: 8, k: 64, inRows }, [8, 64], q4, options));
    const [inRows, inColumns] = await Promise.all(jobs);
    expect(inRows).toEqual(quantizeMeasured(tensor(w, [8, 64]), q4, options));
    expect(inColumns!.packed).toEqual(quantize(transpose(tensor(w, [64, 8])), q4, options));
    expect(await threads.quantize({ fd, offset: 1e6, rows: 8, k: 64, inRows: true }, [8, 64], q4, options)).toBeNull();
  } finally {
    await threads.close();
    closeSync(fd);
    rmSync(folder, { recursive: true });
  }
});

test("gatherRows: rows as they decode, neighbours, repeats and the last; what is none is refused", () => {
  const w = quantize(tensor(x, [rows, k]), format("uint4_b8_zp"));
  const all = dequantize(w);
  const ids = [5, 0, 5, 6, 7, 10, 3, 2];
  const out = new Float32Array(ids.length * k);
  const got = gatherRows(w, ids, out);
  expect(got.data).toBe(out);
  expect(got.shape).toEqual([ids.length, k]);
  expect(got.data).toEqual(Float32Array.from(ids.flatMap((id) => [...all.subarray(id * k, (id + 1) * k)])));
  expect(gatherRows(w, [10]).data).toEqual(all.subarray(10 * k));
  const refused = expect.objectContaining({ code: "E_SHAPE" });
  for (const wrong of [[], [-1], [rows], [0, 0.5], [0, NaN]]) expect(() => gatherRows(w, wrong)).toThrow(refused);
  expect(() => gatherRows(w, [1, 2], new Float32Array(k))).toThrow(refused);
});

test("a band is read once in each pass over the matrix, and no higher than asked for", () => {
  for (const bandRows of [1, 3, 4, 5, 11]) {
    const reads: [number, number][] = [];
    const s = source(bandRows);
    const counted = { ...s, band: (row: number, count: number) => (reads.push([row, count]), s.band(row, count)) };
    quantizeBands(counted, format("int8_tensor"));
    const bands = Array.from({ length: Math.ceil(rows / bandRows) }, (_, i) => [i * bandRows, Math.min(bandRows, rows - i * bandRows)]);
    // extremes, codes, errors; a matrix of one band is held
    const once = bands.length === 1;
    expect(reads, String(bandRows)).toEqual(once ? bands : [...bands, ...bands, ...bands]);
    reads.length = 0;
    quantizeBands(counted, format("int8_row"));
    expect(reads).toEqual(bands);
    // whole tiles, and blocks that go on from row to row: 36 and 24 meet every third row
    for (const [f, step, flat] of [[spans([4, 8]), 4, false], [spans(36), 3, true], [spans(16), 1, false], [spans(48), 2, true]] as const) {
      reads.length = 0;
      quantizeBands(counted, f, {}, flat);
      const high = Math.max(step, bandRows - (bandRows % step));
      expect(reads).toEqual(Array.from({ length: Math.ceil(rows / high) }, (_, i) => [i * high, Math.min(high, rows - i * high)]));
    } // prettier-ignore
  }
});

test("errors of a quantizer that are none of a value are passed on; its packed tensors are joined", () => {
  const made = { algorithm: "mine", quantizeWeight: (t: Parameters<typeof quantize>[0], f: Format) => ({ ...quantize(t, f), recipe: { version: 1 as const, algorithm: "mine" } }) }; // prettier-ignore
  const whole = quantize(tensor(x, [rows, k]), format("int8_row"));
  expect(quantizeBands(source(4), format("int8_row"), made).packed).toEqual({ ...whole, recipe: { version: 1, algorithm: "mine" } });
  for (const thrown of [new TypeError("mine"), new LowbitError("E_SHAPE", "mine"), new LowbitError("E_VALUE", "mine")]) {
    const failing = { algorithm: "mine", quantizeWeight: () => { throw thrown; } }; // prettier-ignore
    expect(() => quantizeBands(source(4), format("int8_row"), failing)).toThrow(thrown);
  }
});
