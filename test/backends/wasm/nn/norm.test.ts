// Normalisation and softmax against binary64: every set of operands, odd widths, strided rows, in place, extreme
// values, one thread and two; onnxruntime for masked rows.
import { describe, expect, it } from "vitest";
import { norm, normJob, type NormSpec } from "../../../../kernels/wasm/nn/norm.ts";
import { rowsAt } from "../../../../kernels/wasm/nn/rows.ts";
import { softmax, softmaxJob } from "../../../../kernels/wasm/nn/softmax.ts";
import * as ort from "onnxruntime-node";
import * as build from "../../../onnx/build.ts";
import { random } from "../../../helpers/random.ts";
import { FLT_MAX, memories, runOn } from "./bench.ts";

const all = memories();
const rng = random(11);
const normal = (n: number, size = 1): Float32Array => Float32Array.from({ length: n }, () => rng.normal() * size);
const WIDTHS = [1, 2, 3, 4, 5, 15, 16, 17, 63, 128, 333, 1024];

/** A row by the definition, in binary64. */
function oracle(spec: NormSpec, epsilon: number, row: { x: number[]; skip: number[]; addend: number[]; scale: number[]; shift: number[] }) {
  const sum = row.x.map((v, i) => v + (spec.skip ? row.skip[i] : 0) + (spec.addend ? row.addend[i] : 0));
  const mean = spec.kind === "layer" ? sum.reduce((a, b) => a + b, 0) / sum.length : 0;
  const variance = sum.reduce((a, b) => a + (b - mean) ** 2, 0) / sum.length;
  const y = sum.map(
    (v, i) => ((v - mean) / Math.sqrt(variance + epsilon)) * (spec.scale ? row.scale[i] : 1) + (spec.shift ? row.shift[i] : 0),
  );
  return { sum, y };
}

describe("norm", () => {
  it("equals its definition for every set of operands and odd widths", () => {
    let worst = 0;
    for (const kind of ["rms", "layer"] as const)
      for (let set = 0; set < 16; set++)
        for (const width of set === 15 ? WIDTHS : [5, 20])
          for (const memory of all) {
            const has = (i: number): boolean => (set & (1 << i)) !== 0;
            const spec = { kind, skip: has(0), addend: has(1), scale: has(2), shift: has(3), shared: memory.shared };
            const rows = width < 64 ? 700 / Math.max(1, width) + 3 : 9;
            const n = Math.floor(rows) * width;
            const [x, skip, addend, scale, shift] = [normal(n), normal(n), normal(width), normal(width), normal(width)];
            const [y, sum] = runOn(memory, norm, spec, [new Float32Array(n), new Float32Array(n), x, skip, addend, scale, shift], (at) =>
              normJob({ rows: n / width, width, epsilon: 1e-5, x: rowsAt(at[2], width, n / width), y: rowsAt(at[0], width), sum: rowsAt(at[1], width),
                skip: rowsAt(at[3], width), addend: at[4], scale: at[5], shift: at[6] }),
            ); // prettier-ignore
            for (let r = 0; r < n; r += width) {
              const cut = (t: Float32Array): number[] => [...t.subarray(r, r + width)];
              const expected = oracle(spec, 1e-5, {
                x: cut(x),
                skip: cut(skip),
                addend: [...addend],
                scale: [...scale],
                shift: [...shift],
              });
              const biggest = Math.max(1, ...expected.sum.map(Math.abs));
              const spread = kind === "layer" ? Math.sqrt(expected.sum.reduce((a, b) => a + b * b, 0) / width) : 1;
              for (let i = 0; i < width; i++) {
                // a narrow row of nearly equal values has a small deviation: its error is that of the values over it
                const size = Math.max(biggest, Math.abs(expected.y[i]));
                const deviation = Math.abs(y[r + i] - expected.y[i]);
                const bound = width > 4 ? 2e-6 * size * Math.max(1, spread) : 3e-4 * size;
                if (!(deviation < bound)) throw new Error(`${JSON.stringify(spec)} ${width}: ${deviation}`);
                if (spec.skip || spec.addend) worst = Math.max(worst, Math.abs(sum[r + i] - expected.sum[i]));
              }
            }
          }
    expect(worst).toBeLessThan(1e-6);
    expect(worst).toBeGreaterThan(0);
  });

  it("works in place on heads of a packed projection, the sum over the skip", () => {
    for (const memory of all) {
      const [tokens, heads, width, stride] = [37, 3, 24, 100];
      const x = normal(tokens * stride);
      const skip = normal(tokens * stride);
      const spec = { kind: "rms", skip: true, addend: false, scale: true, shift: false, shared: memory.shared } as const;
      const scale = normal(width);
      const [y, sum] = runOn(memory, norm, spec, [x, skip, scale], (at) => {
        const place = (address: number) => ({ address: address + 16, outer: 4 * stride, inner: 4 * width });
        const [px, ps] = [place(at[0]), place(at[1])];
        return normJob({ rows: tokens * heads, width, per: heads, epsilon: 1e-6, x: px, y: px, skip: ps, sum: ps, scale: at[2] });
      });
      for (let t = 0; t < tokens; t++)
        for (let i = 0; i < stride; i++) {
          const at = t * stride + i;
          const head = Math.floor((i - 4) / width);
          if (i < 4 || head >= heads) {
            if (y[at] !== x[at] || sum[at] !== skip[at]) throw new Error(`touched ${at}`);
          } else {
            const s = Array.from(
              { length: width },
              (_, j) => x[t * stride + 4 + head * width + j] + skip[t * stride + 4 + head * width + j],
            );
            const rms = Math.sqrt(s.reduce((a, b) => a + b * b, 0) / width + 1e-6);
            const j = (i - 4) % width;
            const wrong = Math.abs(y[at] - (s[j] / rms) * scale[j]) / Math.max(1, Math.abs(y[at]));
            if (!(wrong < 2e-6 && Math.abs(sum[at] - s[j]) < 1e-6)) throw new Error(`head ${head} of ${t}: ${wrong}`);
          }
        }
    }
  });

  it("is exact about constants, zeros and large means", () => {
    for (const memory of all)
      for (const width of [7, 64]) {
        const run = (kind: "rms" | "layer", row: Float32Array): Float32Array =>
          runOn(memory, norm, { kind, skip: false, addend: false, scale: false, shift: false, shared: memory.shared }, [row, row], (at) =>
            normJob({ rows: 1, width, epsilon: 1e-12, x: rowsAt(at[0], width), y: rowsAt(at[1], width) }),
          )[1];
        expect([...run("layer", new Float32Array(width).fill(3))].every((v) => v === 0)).toBe(true);
        expect([...run("rms", new Float32Array(width))].every((v) => v === 0)).toBe(true);
        // mean 1024, deviation 1: a sum of squares minus the square of the mean would lose it
        const far = Float32Array.from({ length: width }, (_, i) => 1024 + (i % 2 === 0 ? 1 : -1) * (i < width - (width % 2) ? 1 : 0));
        run("layer", far).forEach((v, i) => i < width - (width % 2) && expect(Math.abs(Math.abs(v) - Math.sqrt(width / (width - (width % 2))))).toBeLessThan(1e-5));
      }
  }); // prettier-ignore
});

describe("softmax", () => {
  const run = (memory: (typeof all)[number], x: Float32Array, width: number): Float32Array =>
    runOn(memory, softmax, { shared: memory.shared }, [x], ([at]) =>
      softmaxJob({ rows: x.length / width, width, x: rowsAt(at, width, x.length / width), y: rowsAt(at, width, x.length / width) }),
    )[0];

  it("equals its definition, in place, for any width and size of values", () => {
    for (const memory of all)
      for (const width of WIDTHS)
        for (const size of [1, 30, 1e30]) {
          const x = normal(width * 13, size);
          const y = run(memory, x, width);
          for (let r = 0; r < x.length; r += width) {
            const row = x.subarray(r, r + width);
            const most = Math.max(...row);
            const sum = row.reduce((total, v) => total + Math.exp(v - most), 0);
            const errors = row.map((v, i) => Math.abs(y[r + i] - Math.exp(v - most) / sum));
            expect(errors.every((error) => error < 4e-7)).toBe(true);
          }
        }
  });

  it("treats masked and infinite values as onnxruntime does", async () => {
    const rows = [
      [-Infinity, -Infinity, -Infinity, -Infinity, -Infinity, -Infinity],
      [-FLT_MAX, -FLT_MAX, -FLT_MAX, -FLT_MAX, -FLT_MAX, -FLT_MAX],
      [-Infinity, 1, 2, -Infinity, -FLT_MAX, -10000],
      [-10000, -10000, -10001, -10002, -10000, -10000],
      [FLT_MAX, 0, -FLT_MAX, FLT_MAX, 1, 2],
      [Infinity, 0, 1, 2, 3, 4],
      [NaN, 0, 1, 2, 3, 4],
      [0, -0, 0, 0, 0, 2 ** -149],
    ];
    const x = Float32Array.from(rows.flat());
    const value = build.value;
    const [input, output] = [value("x", build.T.FLOAT, [rows.length, 6]), value("y", build.T.FLOAT, [rows.length, 6])];
    const node = build.node("Softmax", ["x"], ["y"]);
    const bytes = build.encode(
      build.model(build.graph({ input: [input], output: [output], initializer: [], node: [node] }), { opset: 17, ir: 9 }),
    );
    const session = await ort.InferenceSession.create(bytes, { logSeverityLevel: 4, intraOpNumThreads: 1 });
    const expected = (await session.run({ x: new ort.Tensor("float32", x, [rows.length, 6]) })).y.data as Float32Array;
    for (const memory of all)
      run(memory, x, 6).forEach((v, i) => {
        const what = `row ${Math.floor(i / 6)}: ${v} ${expected[i]}`;
        expect(Number.isNaN(v), what).toBe(Number.isNaN(expected[i]));
        if (!Number.isNaN(v)) expect(Math.abs(v - expected[i]), what).toBeLessThan(2e-7);
      });
  });
});
