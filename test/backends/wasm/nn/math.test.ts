// The functions of chains against binary64: error bounds over all float32 exponents, special values, and the whole of
// an expression's operations.
import { describe, expect, it } from "vitest";
import { ModuleBuilder } from "../../../../kernels/wasm/engine/asm.ts";
import { engine } from "../../../../kernels/wasm/engine/engine.ts";
import { decay4 } from "../../../../kernels/wasm/nn/math.ts";
import { chain, chainJob, chainSpec } from "../../../../kernels/wasm/nn/chain.ts";
import { everyRow, rowsAt } from "../../../../kernels/wasm/nn/rows.ts";
import { binary, constant, gelu, geluTanh, operand, select, silu, softcap, unary, type Value } from "../../../../kernels/wasm/nn/values.ts";
import { random } from "../../../helpers/random.ts";
import { FLT_MAX, memories, runOn, ulps } from "./bench.ts";

const all = memories();

/** erf by its series, and by the continued fraction of erfc from 2.5 on (both in binary64). */
function erf(x: number): number {
  const t = Math.abs(x);
  if (Number.isNaN(x) || t > 6) return Number.isNaN(x) ? NaN : Math.sign(x);
  if (t < 2.5) {
    let [term, sum] = [x, x];
    for (let n = 1; Math.abs(term) > 1e-18 * Math.abs(sum); n++) {
      term *= (-x * x) / n;
      sum += term / (2 * n + 1);
    }
    return x === 0 ? x : (2 / Math.sqrt(Math.PI)) * sum;
  }
  let fraction = 0;
  for (let k = 60; k >= 1; k--) fraction = k / 2 / (t + fraction);
  return Math.sign(x) * (1 - Math.exp(-t * t) / Math.sqrt(Math.PI) / (t + fraction));
}

/** Phi of the normal distribution, its tail to full precision. */
function upper(x: number): number {
  if (x > -2) return (1 + erf(x / Math.SQRT2)) / 2;
  let fraction = 0;
  for (let k = 80; k >= 1; k--) fraction = k / (-x + fraction);
  return Math.exp((-x * x) / 2) / Math.sqrt(2 * Math.PI) / (-x + fraction);
}

const sigmoid = (x: number): number => (x >= 0 ? 1 / (1 + Math.exp(-x)) : Math.exp(x) / (1 + Math.exp(x)));

/** A float32 of every 4001st bit pattern, and 300,000 spread evenly where the functions bend. */
function samples(): Float32Array {
  const step = 4001;
  const words = Uint32Array.from({ length: Math.floor(2 ** 32 / step) }, (_, i) => i * step);
  const patterns = new Float32Array(words.buffer);
  const dense = Float32Array.from({ length: 300_000 }, (_, i) => -110 + (i * 205) / 300_000);
  const near = Float32Array.from({ length: 300_000 }, (_, i) => -6 + (i * 12) / 300_000);
  const special = [
    0,
    -0,
    1,
    -1,
    Infinity,
    -Infinity,
    NaN,
    FLT_MAX,
    -FLT_MAX,
    2 ** -149,
    -(2 ** -149),
    88.72283,
    88.72284,
    -103.97208,
    -87.33655,
  ];
  return concat([Float32Array.from(special), Float32Array.of(0.625, -0.625, 0.92, -0.92, 4, -4), patterns, dense, near]);
}

function concat(parts: readonly Float32Array[]): Float32Array {
  const out = new Float32Array(parts.reduce((sum, p) => sum + p.length, 0));
  let at = 0;
  for (const part of parts) {
    out.set(part, at);
    at += part.length;
  }
  return out;
}

/** A chain on the elements of its operands, as one row. */
function evaluate(value: Value, operands: readonly Float32Array[], memory = all[0], relaxed = memory.features.relaxed): Float32Array {
  const n = operands[0].length;
  const spec = chainSpec([value], operands.map(() => "vector" as const), { shared: memory.shared, relaxed }); // prettier-ignore
  const result = runOn(memory, chain, spec, [...operands, new Float32Array(n)], (at) =>
    chainJob(
      1,
      n,
      at.map((a) => rowsAt(a, n)),
    ),
  );
  return result[operands.length];
}

/** With fused multiply-add, where the engine has it, and without. */
const kinds = (): readonly boolean[] => (all[0].features.relaxed ? [false, true] : [false]);

describe("functions", () => {
  it.each([
    ["exp", Math.exp, 1.5],
    ["sigmoid", sigmoid, 3],
    ["tanh", Math.tanh, 2],
    ["erf", erf, 2],
    ["sqrt", Math.sqrt, 0.5001],
  ] as const)("%s is within its bound on all float32 exponents", (name, exact, bound) => {
    const x = samples();
    for (const relaxed of kinds()) {
      const y = evaluate(unary(name, operand(0)), [x], all[0], relaxed);
      let [worst, at] = [0, 0];
      for (let i = 0; i < x.length; i++) {
        const error = ulps(y[i], exact(x[i]));
        if (!(error <= worst)) [worst, at] = [error, x[i]];
      }
      expect(worst, `${name} at ${at}, relaxed ${relaxed}`).toBeLessThanOrEqual(bound);
      expect(worst).toBeGreaterThan(0.2);
    }
  });

  it("exp of what softmax has is within its bound, and 0 where it would be subnormal", () => {
    const x = samples().map((v) => (v > 0 ? -v : v));
    for (const relaxed of kinds()) {
      const m = new ModuleBuilder();
      m.func("decay", ["i32", "i32"], [], (f) => {
        const [at, end] = [f.param(0), f.param(1)];
        const v = f.local("v128");
        const decay = decay4(f, v, relaxed);
        f.doWhile(
          () => {
            f.set(v, f.load("v128.load", at));
            f.store("v128.store", at, 0, decay);
            f.bump(at, 16);
          },
          f.op("i32.lt_u", at, end),
        );
      });
      const memory = new engine.Memory({ initial: Math.ceil((4 * x.length) / 65536) + 1, maximum: 65536 });
      const { exports } = new engine.Instance(new engine.Module(m.bytes()), { m: { m: memory } });
      const y = new Float32Array(memory.buffer, 0, x.length);
      y.set(x);
      (exports.decay as (from: number, to: number) => void)(0, 4 * x.length);
      let [worst, at] = [0, 0];
      x.forEach((v, i) => {
        // below the least normal number: it, or 0
        const error =
          v < -87.33654 ? (y[i] >= 0 && y[i] <= 2 ** -126 && (v > -87.69 || y[i] === 0) ? 0 : Infinity) : ulps(y[i], Math.exp(v));
        const over = error - (relaxed && v > -100 ? -v / 28 : 0);
        if (!(over <= worst)) [worst, at] = [over, v];
      });
      expect(worst, `at ${at}, relaxed ${relaxed}`).toBeLessThanOrEqual(1.5);
      expect(worst).toBeGreaterThan(0.4);
    }
  });

  it("gelu is within its bounds: no cancellation on either side", () => {
    const x = samples();
    const exact = (v: number): number => v * upper(v);
    for (const relaxed of kinds()) {
      const y = evaluate(gelu(operand(0)), [x], all[0], relaxed);
      let [above, below] = [0, 0];
      for (let i = 0; i < x.length; i++) {
        if (Number.isNaN(x[i])) expect(y[i]).toBeNaN();
        else if (x[i] > 0) above = Math.max(above, ulps(y[i], exact(x[i])));
        else below = Math.max(below, Math.abs(y[i] - (x[i] < -40 ? 0 : exact(x[i]))));
      }
      expect(above).toBeLessThanOrEqual(2.5);
      expect(below).toBeLessThanOrEqual(7e-8);
      expect(Math.min(above, below * 1e8)).toBeGreaterThan(0.5);
    }
    const ends = evaluate(gelu(operand(0)), [Float32Array.of(-0, 0, Infinity, -Infinity, -FLT_MAX)]);
    expect([...ends].map((v, i) => (i < 3 ? v : Math.abs(v)))).toEqual([-0, 0, Infinity, 0, 0]);
  });

  it("gelu is found where it is spelled out, and nowhere else", () => {
    const x = operand(0);
    const [half, one, root, inverse] = [0.5, 1, Math.SQRT2, Math.SQRT1_2].map(constant);
    const mul = (a: Value, b: Value): Value => binary("mul", a, b);
    const sum = (z: Value, c = one): Value => binary("add", c, unary("erf", z));
    const over = binary("div", x, root);
    for (const spelled of [
      mul(mul(x, sum(over)), half),
      mul(half, mul(sum(mul(inverse, x)), x)),
      mul(mul(half, x), sum(mul(x, inverse))),
      mul(x, mul(binary("add", unary("erf", over), one), half)),
    ])
      expect(spelled).toEqual(gelu(x));
    for (const other of [
      mul(mul(x, sum(over)), constant(0.25)),
      mul(mul(x, sum(over, half)), half),
      mul(mul(x, sum(binary("div", root, x))), half),
      mul(mul(operand(1), sum(over)), half),
      mul(mul(x, sum(mul(x, root))), half),
      mul(mul(mul(x, x), sum(over)), half),
      mul(x, sum(over)),
    ])
      expect(other.op).toBe("mul");
  });

  it("keep signs of zero, and are exact at their ends", () => {
    const x = Float32Array.of(-0, 0, Infinity, -Infinity);
    for (const name of ["tanh", "erf"] as const) expect([...evaluate(unary(name, operand(0)), [x])]).toEqual([-0, 0, 1, -1]);
    expect([...evaluate(unary("exp", operand(0)), [x])]).toEqual([1, 1, Infinity, 0]);
    expect([...evaluate(unary("sigmoid", operand(0)), [x])]).toEqual([0.5, 0.5, 1, 0]);
  });
});

describe("chains", () => {
  const rng = random(5);
  const edge = [0, -0, Infinity, -Infinity, NaN, FLT_MAX, -FLT_MAX, 2 ** -149, 1, -1, 0.5, 1.5, 2.5, -2.5];
  const x = Float32Array.from({ length: 14 * 14 + 3 }, (_, i) => edge[i % 14]);
  const y = Float32Array.from({ length: 14 * 14 + 3 }, (_, i) => edge[Math.floor(i / 14) % 14]);
  const nearest = (v: number): number => {
    const floor = Math.floor(v);
    return !Number.isFinite(v) || v === floor ? v : v - floor !== 0.5 ? Math.round(v) : floor % 2 === 0 ? floor : floor + 1;
  };
  const numbers: [string, (a: number, b: number) => number][] = [
    ["add", (a, b) => Math.fround(a + b)],
    ["sub", (a, b) => Math.fround(a - b)],
    ["mul", (a, b) => Math.fround(a * b)],
    ["div", (a, b) => Math.fround(a / b)],
    ["min", Math.min],
    ["max", Math.max],
    ["neg", (a) => -a],
    ["abs", Math.abs],
    ["floor", Math.floor],
    ["ceil", Math.ceil],
    ["trunc", Math.trunc],
    ["round", (a) => nearest(a)],
  ];
  it.each(numbers)("%s is IEEE arithmetic", (name, exact) => {
    const two = exact.length === 2 || ["min", "max"].includes(name);
    const got = evaluate(two ? binary(name as "add", operand(0), operand(1)) : unary(name as "neg", operand(0)), two ? [x, y] : [x]);
    // the sign of a zero that halves round to is not compared
    got.forEach((v, i) => expect(v + 0, `${name} ${x[i]} ${y[i]}`).toBe(exact(x[i], y[i]) + 0));
  });

  it("compare, combine and select", () => {
    const compare = { eq: (a: number, b: number) => a === b, ne: (a: number, b: number) => a !== b, lt: (a: number, b: number) => a < b,
      le: (a: number, b: number) => a <= b, gt: (a: number, b: number) => a > b, ge: (a: number, b: number) => a >= b }; // prettier-ignore
    for (const [name, exact] of Object.entries(compare)) {
      const condition = binary(name as "eq", operand(0), operand(1));
      const got = evaluate(unary("number", condition), [x, y]);
      got.forEach((v, i) => expect(v, `${name} ${x[i]} ${y[i]}`).toBe(Number(exact(x[i], y[i]))));
      const chosen = evaluate(select(condition, operand(0), operand(1)), [x, y]);
      chosen.forEach((v, i) => expect(v).toBe(exact(x[i], y[i]) ? x[i] : y[i]));
    }
    const [a, b] = [binary("gt", operand(0), constant(0)), binary("lt", operand(1), constant(-0.75))];
    const both = evaluate(unary("number", binary("and", unary("not", a), binary("or", a, b))), [x, y]);
    both.forEach((v, i) => expect(v).toBe(Number(!(x[i] > 0) && y[i] < -0.75)));
  });

  it("give activations as one kernel, near binary64", () => {
    const v = Float32Array.from({ length: 20_001 }, () => rng.normal() * 6);
    const w = Float32Array.from({ length: 20_001 }, () => rng.normal());
    const near = (got: Float32Array, exact: (a: number, b: number) => number, bound: number): void =>
      expect(Math.max(...got.map((g, i) => Math.abs(g - exact(v[i], w[i])) / Math.max(1, Math.abs(v[i]))))).toBeLessThanOrEqual(bound);
    const tanhGelu = (a: number): number => (a / 2) * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (a + 0.044715 * a ** 3)));
    near(evaluate(gelu(operand(0)), [v]), (a) => (a / 2) * (1 + erf(a / Math.SQRT2)), 3e-7);
    near(evaluate(geluTanh(operand(0)), [v]), tanhGelu, 3e-7);
    near(evaluate(binary("mul", silu(operand(0)), operand(1)), [v, w]), (a, b) => a * sigmoid(a) * b, 1e-6);
    near(evaluate(silu(operand(0), 1.702), [v]), (a) => a * sigmoid(1.702 * a), 1e-6);
    near(evaluate(softcap(operand(0), 5), [v]), (a) => 5 * Math.tanh(a / 5), 1e-6);
  });

  it("broadcast rows, columns, scalars and runs, in place and strided, on any width and thread count", () => {
    for (const memory of all)
      for (const [runs, per, width] of [
        [1, 1, 1],
        [3, 5, 7],
        [2, 40, 129],
        [4, 3, 2050],
      ]) {
        const rows = runs * per;
        const stride = width + 3;
        const a = Float32Array.from({ length: rows * stride }, () => rng.normal());
        const b = Float32Array.from({ length: per * width }, () => rng.normal());
        const c = Float32Array.from({ length: runs }, () => rng.normal());
        const d = Float32Array.from({ length: width }, () => rng.normal());
        const value = binary("add", binary("mul", operand(0), operand(1)), binary("sub", operand(2), operand(3)));
        const spec = chainSpec([value, binary("max", operand(0), operand(3))], ["vector", "vector", "scalar", "vector"], {
          shared: memory.shared,
          relaxed: false,
        });
        const out = new Float32Array(rows * width);
        const [inPlace, , , , second] = runOn(memory, chain, spec, [a, b, c, d, out], ([pa, pb, pc, pd, po]) => {
          const rowsOfA = { address: pa, outer: 4 * stride * per, inner: 4 * stride };
          const rowsOfC = { address: pc, outer: 4, inner: 0 };
          const places = [rowsOfA, { address: pb, outer: 0, inner: 4 * width }, rowsOfC, everyRow(pd), rowsOfA, rowsAt(po, width, per)];
          return chainJob(rows, width, places, per);
        });
        let wrong = 0;
        for (let r = 0; r < rows; r++) {
          for (let i = 0; i < width; i++) {
            const [va, vb, vc, vd] = [a[r * stride + i], b[(r % per) * width + i], c[Math.floor(r / per)], d[i]];
            if (inPlace[r * stride + i] !== Math.fround(Math.fround(va * vb) + Math.fround(vc - vd))) wrong++;
            if (second[r * width + i] !== Math.max(va, vd)) wrong++;
          }
          for (let i = width; i < stride; i++) if (inPlace[r * stride + i] !== a[r * stride + i]) wrong++;
        }
        expect(wrong, `${runs} ${per} ${width}`).toBe(0);
      }
  });

  it("of ten thousand operations are one kernel", () => {
    let value: Value = operand(0);
    for (let i = 0; i < 10_000; i++) value = binary(i % 2 === 0 ? "add" : "sub", value, constant(1 + (i % 4 < 2 ? 0 : 1)));
    const v = Float32Array.from({ length: 9 }, (_, i) => i);
    expect([...evaluate(value, [v])]).toEqual([...v]);
  });

  it("tell chains with -0, infinities and 0 apart", () => {
    const v = Float32Array.of(-0, -0, -0, -0, -0);
    for (const c of [-0, 0, Infinity, -Infinity])
      evaluate(binary("add", operand(0), constant(c)), [v]).forEach((got) => expect(Object.is(got, -0 + c)).toBe(true));
  });

  it("refuse what they cannot hold", () => {
    expect(() => unary("not", operand(0))).toThrow(TypeError);
    expect(() => binary("add", binary("lt", operand(0), operand(1)), operand(0))).toThrow(/expected a number/);
    expect(() => select(operand(0), operand(0), operand(1))).toThrow(TypeError);
    expect(() => chainSpec([operand(3)], ["vector"], { shared: false, relaxed: false })).toThrow(RangeError);
    const many = Array.from({ length: 20 }, () => "vector" as const);
    expect(() => chainSpec([operand(0)], many, { shared: false, relaxed: false })).toThrow(/at most 20/);
  });
});
