// Codes of ggml blocks as GPTQ chooses them, by the layouts that ggml documents: every column takes the nearest value that
// the encoder's scales of its block allow, the bytes that are packed are those of the values that were told.
import { expect, test } from "vitest";
import { format } from "../../formats/index.ts";
import type { OpaqueFormat } from "../../src/index.ts";
import { quantize, tensor } from "../../src/index.ts";
import { gptq } from "../../src/quantize/index.ts";
import { OpaqueColumns } from "../../src/quantize/opaque.ts";
import { half, IQ4NL } from "../oracle/ggml.ts";
import { random } from "../helpers/random.ts";

const [rows, k] = [3, 96];
const rng = random(4);

/** Of a block of 32: the values that element i may take, from its bytes (ggml-quants.c). */
const levels: Record<string, { bytes: number; values: (block: Uint8Array, i: number) => number[] }> = {
  ggml_q4_0: { bytes: 18, values: (b) => Array.from({ length: 16 }, (_, c) => (c - 8) * half(b[0] | (b[1] << 8))) },
  ggml_q4_1: { bytes: 20, values: (b) => Array.from({ length: 16 }, (_, c) => c * half(b[0] | (b[1] << 8)) + half(b[2] | (b[3] << 8))) },
  ggml_q5_0: { bytes: 22, values: (b) => Array.from({ length: 32 }, (_, c) => (c - 16) * half(b[0] | (b[1] << 8))) },
  ggml_q8_0: { bytes: 34, values: (b) => Array.from({ length: 255 }, (_, c) => (c - 127) * half(b[0] | (b[1] << 8))) },
  ggml_iq4_nl: { bytes: 18, values: (b) => IQ4NL.map((v) => v * half(b[0] | (b[1] << 8))) },
};

test.each(Object.keys(levels))("%s: the nearest value, told and packed", (name) => {
  const f = format(name as "ggml_q4_0") as OpaqueFormat;
  const { bytes, values } = levels[name];
  const columns = new OpaqueColumns(f, rows, k);
  expect([columns.span, columns.rows, columns.k]).toEqual([32, rows, k]);
  const wt = Float64Array.from({ length: rows * k }, () => rng.normal());
  wt.fill(0, 32 * rows, 32 * rows + 5); // a few zeros, not a block
  const codes = new Uint8Array(rows * k);
  const told = new Float64Array(rows * k);
  const column = [new Uint8Array(rows), new Float64Array(rows)] as const;
  // columns move after the scales are chosen, as GPTQ moves them
  const moved = wt.map((v) => v + 0.3 * rng.normal()); // prettier-ignore
  const own: Uint8Array[] = [];
  for (let j = 0; j < k; j++) {
    if (j % 32 === 0) {
      columns.fill(wt, j);
      for (let r = 0; r < rows; r++) own.push(f.encodeBytes(Float32Array.from({ length: 32 }, (_, i) => wt[(j + i) * rows + r])));
    }
    columns.quantizeColumn(j, moved, j * rows, ...column);
    for (let r = 0; r < rows; r++) [codes[r * k + j], told[r * k + j]] = [column[0][r], column[1][r]];
    for (let r = 0; r < rows; r++) {
      const allowed = values(own[Math.floor(j / 32) * rows + r], j % 32);
      const least = Math.min(...allowed.map((v) => Math.abs(v - moved[j * rows + r])));
      expect(Math.abs(told[r * k + j] - moved[j * rows + r])).toBeLessThan(least + 1e-6);
    }
  }
  const packed = columns.pack(codes, [rows, k], { version: 1, algorithm: "gptq" });
  expect([packed.codes.length, packed.rowBytes, packed.scales, packed.offsets]).toEqual([rows * 3 * bytes, 3 * bytes, null, null]);
  expect(f.decodeBytes(packed.codes)).toEqual(Float32Array.from(told));
});

test("half way between its own value and another one a column keeps its own", () => {
  const f = format("ggml_q4_0") as OpaqueFormat;
  const columns = new OpaqueColumns(f, 1, 32);
  // scale 1: codes 0 to 15 are -8 to 7
  const x = Float64Array.from({ length: 32 }, (_, i) => (i === 0 ? -8 : (i % 15) - 7));
  columns.fill(x, 0);
  const [codes, values] = [new Uint8Array(1), new Float64Array(1)];
  for (let j = 1; j < 32; j++)
    for (const half of [-0.5, 0.5]) {
      columns.quantizeColumn(j, Float64Array.of(x[j] + half), 0, codes, values);
      expect(values[0]).toBe(x[j]);
      // further away the lower of two that are as near
      columns.quantizeColumn(j, Float64Array.of(x[j] + 2 * half), 0, codes, values);
      expect(values[0]).toBe(Math.min(7, x[j] + 2 * half));
    }
});

test("a column that did not move keeps the encoder's own codes", () => {
  for (const name of Object.keys(levels)) {
    const w = tensor(Float32Array.from({ length: rows * k }, () => rng.normal()), [rows, k]); // prettier-ignore
    const identity = new Float64Array(k * k);
    for (let i = 0; i < k; i++) identity[i * k + i] = 2;
    const f = format(name as "ggml_q4_0");
    const [plain, packed] = [quantize(w, f), quantize(w, f, gptq({ hessian: identity }))];
    const [a, b] = [plain, packed].map((p) => (f as OpaqueFormat).decodeBytes(p.codes));
    // another code only where its value is nearer
    let nearer = 0;
    a.forEach((v, i) => {
      if (v === b[i]) return;
      expect(Math.abs(b[i] - w.data[i])).toBeLessThan(Math.abs(v - w.data[i]));
      nearer++;
    });
    expect(nearer).toBeLessThan(rows * k * 0.2);
  }
  const wide = tensor(new Float32Array(2 * 40), [2, 40]);
  expect(() => quantize(wide, format("ggml_q4_0"), gptq({ hessian: new Float64Array(1600).fill(1) }))).toThrow(/32/);
});
