// float64 products on threads: every remainder of the tiles against the plain loop, in place and copied, lower
// triangles, the same bits for any number of threads; what the quantizers do with them; memory given back.
import { afterAll, beforeAll, expect, test } from "vitest";
import { format } from "../../../formats/index.ts";
import { isLowbitError, quantize, tensor, wasm } from "../../../src/index.ts";
import type { WasmBackend } from "../../../src/index.ts";
import { calibrate, gptq, layerStatistics, mrgptq, outputError } from "../../../src/quantize/index.ts";
import { algebraOf, tnProductPlain } from "../../../src/quantize/linalg.ts";
import { openAlgebra } from "../../../src/quantize/simd.ts";
import { gaussianWeights, inputs } from "../../helpers/layers.ts";
import { random } from "../../helpers/random.ts";

let one: WasmBackend;
let two: WasmBackend;
let three: WasmBackend;
beforeAll(async () => {
  [one, two, three] = await Promise.all([1, 2, 3].map((threads) => wasm({ threads })));
});
afterAll(() => [one, two, three].forEach((b) => b.dispose()));

const SIZES = [
  [1, 1, 1],
  [2, 3, 4],
  [3, 7, 5],
  [4, 4, 300],
  [5, 130, 9],
  [64, 33, 17],
  [67, 200, 130],
  [131, 259, 257],
  [300, 518, 3],
] as const;

function distance(a: Float64Array, b: Float64Array): number {
  let worst = a.length === b.length ? 0 : NaN;
  for (let i = 0; i < a.length; i++) worst = Math.max(worst, Math.abs(a[i] - b[i]));
  return worst;
}

function operands(m: number, n: number, depth: number, make: (n: number) => Float64Array) {
  const rng = random(m + 7 * n + depth);
  const [lda, ldb, ldc] = [m + 2, n + 1, n + 3];
  const fill = (count: number) => {
    const out = make(count);
    for (let i = 0; i < count; i++) out[i] = rng.normal();
    return out;
  };
  const [a, b, c] = [fill(depth * lda + 5), fill(depth * ldb + 5), fill(m * ldc + 5)];
  return { a, b, c, lda, ldb, ldc };
}

test("products equal the plain ones up to the order of sums, and each other bit for bit, in place and copied", () => {
  for (const [m, n, depth] of SIZES) {
    const plain = operands(m, n, depth, (count) => new Float64Array(count));
    const { lda, ldb, ldc } = plain;
    const want = plain.c.slice();
    tnProductPlain(want, 4, ldc, m, n, plain.a, 3, lda, plain.b, 2, ldb, depth, -0.5);
    let first: Float64Array | null = null;
    for (const [backend, inPlace] of [[one, false], [two, false], [two, true], [three, true]] as const) {
      const held: { free(): void }[] = [];
      const got = operands(m, n, depth, (count) => {
        if (!inPlace) return new Float64Array(count);
        const array = backend.float64.allocate(count);
        held.push(array);
        return array.data;
      });
      backend.float64.product(
        { data: got.c, at: 4, ld: ldc },
        { data: got.a, at: 3, ld: lda },
        { data: got.b, at: 2, ld: ldb },
        { m, n, depth },
        -0.5,
        false,
      );
      expect(distance(got.c, want)).toBeLessThan(1e-12 * depth);
      first ??= got.c.slice();
      expect(distance(got.c, first)).toBe(0);
      held.forEach((h) => h.free());
    }
  }
}); // prettier-ignore

test("lower triangles", () => {
  for (const [n, depth] of [
    [1, 1],
    [30, 7],
    [130, 40],
    [517, 260],
  ]) {
    const { a, c, lda, ldc } = operands(n, n, depth, (count) => new Float64Array(count));
    const want = c.slice();
    algebraOf(tnProductPlain).lower(want, 4, ldc, n, a, 3, lda, a, 3, lda, depth, 1);
    let first: Float64Array | null = null;
    for (const backend of [one, two]) {
      const got = c.slice();
      const operand = { data: a, at: 3, ld: lda };
      backend.float64.product({ data: got, at: 4, ld: ldc }, operand, operand, { m: n, n, depth }, 1, true);
      const low = Array.from({ length: n * n }, (_, i) => [Math.floor(i / n), i % n])
        .filter(([r, s]) => s <= r)
        .map(([r, s]) => 4 + r * ldc + s);
      const part = Float64Array.from(low, (at) => got[at]);
      expect(
        distance(
          part,
          Float64Array.from(low, (at) => want[at]),
        ),
      ).toBeLessThan(1e-12 * depth);
      first ??= part;
      expect(distance(part, first)).toBe(0);
    }
  }
});

test("arrays of an own memory: in place where all three are its own, else copied", () => {
  const algebra = openAlgebra(1 << 20, 3, {}, "test");
  for (const [m, n, depth] of SIZES) {
    const own = openAlgebra(1 << 20, 3, {}, "test");
    const inside = operands(m, n, depth, (count) => own.array(count));
    const outside = operands(m, n, depth, (count) => new Float64Array(count));
    const mixed = operands(m, n, depth, (count) => new Float64Array(count));
    for (const [o, alg] of [[inside, own], [outside, algebra], [{ ...mixed, a: inside.a }, own]] as const)
      alg.product(o.c, 4, o.ldc, m, n, o.a, 3, o.lda, o.b, 2, o.ldb, depth, 1);
    expect(distance(inside.c, outside.c)).toBeLessThan(1e-12 * depth);
    expect(distance(mixed.c, outside.c)).toBeLessThan(1e-12 * depth);
  }
}); // prettier-ignore

test("GPTQ, MR-GPTQ and statistics give the same numbers with and without threads, and memory comes back", async () => {
  const [rows, k, tokens] = [60, 320, 700];
  const x = inputs("ar", tokens, k, 3);
  const collect = (o: object) => {
    const acc = layerStatistics(k, o);
    acc.add(x.subarray(0, 333 * k));
    acc.add(x.subarray(333 * k));
    return acc.finish();
  };
  const stats = collect({});
  const used = two.bytes;
  const threaded = collect({ backend: two });
  let worst = 0;
  for (let i = 0; i < k * k; i++) worst = Math.max(worst, Math.abs(stats.hessian![i] - threaded.hessian![i]));
  expect(worst).toBeLessThan(1e-9 * stats.hessian![0]);
  const other = await calibrate([{ fc: { data: x, shape: [tokens, k] } }], { layers: { fc: {} }, backend: two });
  expect(Math.abs(other.fc.statistics.hessian![k] / threaded.hessian![k] - 1)).toBeLessThan(1e-12);
  const t = tensor(gaussianWeights(rows, k, 4), [rows, k]);
  for (const name of ["int4_b64", "uint3_b32_zp", "nvfp4"])
    for (const make of [gptq, mrgptq]) {
      const plain = quantize(t, format(name), make({ hessian: stats, actOrder: true }));
      for (const backend of [one, two]) {
        const q = quantize(t, format(name), make({ hessian: stats, actOrder: true, backend }));
        expect(q.codes, name).toEqual(plain.codes);
        expect(q.scales, name).toEqual(plain.scales);
        expect(q.recipe).toEqual({ ...plain.recipe, loss: q.recipe.loss });
      }
    }
  // A large layer works in WebAssembly memory of its own without a backend; its numbers are the same too.
  const wide = tensor(gaussianWeights(3072, k, 5), [3072, k]);
  const big = quantize(wide, format("int4_b64"), gptq({ hessian: stats }));
  expect(quantize(wide, format("int4_b64"), gptq({ hessian: stats, backend: two })).codes).toEqual(big.codes);
  expect(outputError(t.data, t.data, rows, stats.hessian!)).toBe(0);
  const controller = new AbortController();
  const stop = () => controller.abort();
  expect(() =>
    quantize(t, format("int4_b64"), gptq({ hessian: stats, backend: two, onProgress: stop, signal: controller.signal })),
  ).toThrow(expect.objectContaining({ code: "E_ABORTED" }));
  const indefinite = new Float64Array(k * k).fill(5);
  for (let j = 0; j < k; j++) indefinite[j * k + j] = 1e-3;
  expect(() => quantize(t, format("int4_b64"), gptq({ hessian: indefinite, backend: two }))).toThrow(/positive definite/);
  // Scratch stays, arrays do not: a second round takes nothing more.
  const after = two.bytes;
  expect(after - used).toBeLessThan(8 * 1024 * 1024);
  quantize(wide, format("int4_b64"), gptq({ hessian: stats, backend: two }));
  expect(two.bytes).toBe(after);
});

test("backends that cannot do it, and disposed ones, are refused", async () => {
  const h = new Float64Array(16).fill(1);
  const refused = (backend: unknown) => () => gptq({ hessian: h, backend: backend as never });
  expect(refused({ name: "webgpu" })).toThrow(expect.objectContaining({ code: "E_UNSUPPORTED" }));
  expect(refused("wasm")).toThrow(TypeError);
  expect(() => layerStatistics(4, { backend: { name: "webgpu" } })).toThrow(/await wasm/);
  const gone = await wasm({ threads: 2 });
  gone.dispose();
  let error: unknown;
  try {
    quantize(tensor(gaussianWeights(64, 64, 1), [64, 64]), format("int4_b64"), gptq({ hessian: h64(), backend: gone }));
  } catch (e) {
    error = e;
  }
  expect(isLowbitError(error) && error.code).toBe("E_DISPOSED");
});

function h64(): Float64Array {
  const h = new Float64Array(64 * 64);
  for (let i = 0; i < 64; i++) for (let j = 0; j < 64; j++) h[i * 64 + j] = 0.5 ** Math.abs(i - j);
  return h;
}
