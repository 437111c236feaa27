// exp, sigmoid, tanh, erf and gelu of four float32 each, as instructions in the caller's function. Polynomials are
// near-minimax fits made for this file (weighted least squares, Lawson iteration, against binary64); error bounds below
// are held by test/kernels/wasm/nn/math.test.ts over all float32 exponents. NaN gives NaN; -0 stays -0 where f(0) = 0.
//
//   exp      1.5 ulp, subnormal results too; 0 below -104, infinity above 88.73
//   sigmoid  3 ulp
//   tanh     2 ulp
//   erf      2 ulp
//   gelu     2.5 ulp above 0; below it 7e-8 absolute, and 0 at -infinity
//   sqrt, division, comparisons: instructions, correctly rounded
import type { Emit, FunctionBuilder, Local, Operand } from "../engine/asm.ts";

/**
 * The value of a float32x4 function at `x`; emitted where it stands, it leaves one vector. `x` keeps its value.
 * `relaxed`: with fused multiply-add, which the bounds hold for too.
 */
export type Math4 = (f: FunctionBuilder, x: Local, relaxed: boolean) => Emit;

const LOG2E = Math.fround(Math.LOG2E);
/** ln 2 in two parts: the first has 15 bits, so that its multiples up to 2^8 are exact. */
const LN2_HIGH = 0.693145751953125;
const LN2_LOW = Math.LN2 - LN2_HIGH;
/** Adding it rounds to an integer, half to even, which is left in the lowest bits. */
const MAGIC = 1.5 * 2 ** 23;

/** a * b + c. */
const madd = (f: FunctionBuilder, relaxed: boolean, a: Operand, b: Operand, c: Operand): Emit =>
  relaxed ? f.op("f32x4.relaxed_madd", a, b, c) : f.op("f32x4.add", f.op("f32x4.mul", a, b), c);

/** Horner's rule: coefficients from the constant on. A statement for each, for code in lockstep. */
function polynomial(f: FunctionBuilder, x: Local, coefficients: readonly number[], relaxed: boolean): Emit {
  const sum = f.local("v128");
  const last = coefficients.length - 1;
  return () => {
    f.set(sum, f.constantF32(coefficients[last]));
    for (let i = last - 1; i >= 0; i--) f.set(sum, madd(f, relaxed, sum, x, f.constantF32(coefficients[i])));
    f.run(f.get(sum));
  };
}

const negative = (f: FunctionBuilder, x: Local): Emit => f.op("v128.and", x, f.constant32(0x80000000));
const positive = (f: FunctionBuilder, x: Local): Emit => f.op("v128.and", x, f.constant32(0x7fffffff));

/** (e^r - 1 - r) / r^2 for |r| <= ln 2 / 2. */
const EXP = [0.50000001, 0.166665183, 0.0416662042, 0.00836895371, 0.00139506003];

export const exp4: Math4 = (f, x, relaxed) => {
  const [t, n, r, half] = f.locals("v128", 4);
  return () => {
    // pmin(a, b) is b < a ? b : a, so NaN passes
    f.set(r, f.op("f32x4.pmax", f.op("f32x4.pmin", x, f.constantF32(89)), f.constantF32(-105)));
    f.set(t, madd(f, relaxed, r, f.constantF32(LOG2E), f.constantF32(MAGIC)));
    f.set(n, f.op("f32x4.sub", t, f.constantF32(MAGIC)));
    f.set(r, madd(f, relaxed, n, f.constantF32(-LN2_HIGH), r));
    f.set(r, madd(f, relaxed, n, f.constantF32(-LN2_LOW), r));
    f.set(n, f.op("i32x4.sub", t, f.constantF32(MAGIC)));
    // 2^n in two factors: it reaches from 2^-151 to 2^128, and subnormal results are rounded once
    f.set(half, f.op("i32x4.shr_s", n, f.i32(1)));
    f.set(n, f.op("i32x4.sub", n, half));
    const power = (e: Local): Emit => f.op("i32x4.add", f.op("i32x4.shl", e, f.i32(23)), f.constant32(127 << 23));
    const tail = f.op("f32x4.mul", f.op("f32x4.mul", polynomial(f, r, EXP, relaxed), r), r);
    const sum = f.op("f32x4.add", f.op("f32x4.add", tail, r), f.constantF32(1));
    f.run(f.op("f32x4.mul", f.op("f32x4.mul", sum, power(half)), power(n)));
  };
};

export const sigmoid4: Math4 = (f, x, relaxed) => {
  const [e, t] = f.locals("v128", 2);
  const exp = exp4(f, t, relaxed);
  return () => {
    // with z = exp(-|x|): 1 / (1 + z), or z / (1 + z) for negative x, so that small results keep their precision
    f.set(t, f.op("v128.or", x, f.constant32(0x80000000)));
    f.set(e, exp);
    const top = f.op("v128.bitselect", f.constantF32(1), e, f.op("f32x4.ge", x, f.constantF32(0)));
    f.run(f.op("f32x4.div", top, f.op("f32x4.add", e, f.constantF32(1))));
  };
};

/** (tanh(x) / x - 1) / x^2 in x^2, |x| < 0.625. */
const TANH = [-0.333332839, 0.133314912, -0.0537434953, 0.020650579, -0.00571703656];

export const tanh4: Math4 = (f, x, relaxed) => {
  const [t, small, s] = f.locals("v128", 3);
  const exp = exp4(f, s, relaxed);
  return () => {
    f.set(t, positive(f, x));
    f.set(s, f.op("f32x4.mul", x, x));
    f.set(small, f.op("f32x4.add", f.op("f32x4.mul", f.op("f32x4.mul", polynomial(f, s, TANH, relaxed), s), x), x));
    f.set(s, f.op("f32x4.add", t, t));
    const large = f.op("f32x4.sub", f.constantF32(1), f.op("f32x4.div", f.constantF32(2), f.op("f32x4.add", exp, f.constantF32(1))));
    const chosen = f.op("v128.bitselect", small, large, f.op("f32x4.lt", t, f.constantF32(0.625)));
    f.run(f.op("v128.or", chosen, negative(f, x)));
  };
};

/** erf(x) / x - 1 in x^2, |x| < 0.95. */
const ERF_SMALL = [0.128379166, -0.376126323, 0.112836725, -0.0268581043, 0.00519779717, -0.000810596512, 0.0000821542371];
/** -log(1 - erf(t)) / t, 0.9 <= t <= 4. */
const ERF_LARGE = [1.12863708, 0.635198034, 0.106159049, -0.0236945659, 0.00361034195, -0.000314858113, 0.0000104331144];

export const erf4: Math4 = (f, x, relaxed) => {
  const [t, small, s] = f.locals("v128", 3);
  const exp = exp4(f, s, relaxed);
  return () => {
    f.set(s, f.op("f32x4.mul", x, x));
    f.set(small, f.op("f32x4.add", f.op("f32x4.mul", polynomial(f, s, ERF_SMALL, relaxed), x), x));
    // erf is 1 in float32 from 3.92 on
    f.set(t, f.op("f32x4.pmin", positive(f, x), f.constantF32(4)));
    f.set(s, f.op("f32x4.neg", f.op("f32x4.mul", polynomial(f, t, ERF_LARGE, relaxed), t)));
    const large = f.op("f32x4.sub", f.constantF32(1), exp);
    const chosen = f.op("v128.bitselect", small, large, f.op("f32x4.lt", t, f.constantF32(0.92)));
    f.run(f.op("v128.or", chosen, negative(f, x)));
  };
};

/** ((2 Phi(-t))^(-1/8) - 1) / t, 0 <= t <= 9: all that is large of it lies where the tail is small. */
export const GELU = [
  0.0997357294, 0.0447597988, 0.00868861191, 0.00081761484, 0.000265284238, 0.0000127260028, 0.0000102379781, -0.00000163539687,
  0.00000031744483,
];
/** Beyond it the tail is 0 in float32. */
export const GELU_END = 64;

/**
 * x Phi(x) = max(x, 0) - t Phi(-t), t = |x|: without cancellation on either side, and without exp. With v from the
 * polynomial 2 Phi(-t) = 1 / (1 + v)^8, where 1 is kept apart, so that only the last addition rounds beside it.
 */
export const gelu4: Math4 = (f, x, relaxed) => {
  const [t, v] = f.locals("v128", 2);
  return () => {
    f.set(t, f.op("f32x4.pmin", positive(f, x), f.constantF32(GELU_END)));
    f.set(v, f.op("f32x4.mul", polynomial(f, t, GELU, relaxed), t));
    for (let i = 0; i < 3; i++) f.set(v, f.op("f32x4.mul", v, f.op("f32x4.add", v, f.constantF32(2))));
    const tail = f.op("f32x4.div", f.op("f32x4.mul", t, f.constantF32(0.5)), f.op("f32x4.add", v, f.constantF32(1)));
    f.run(f.op("f32x4.sub", f.op("f32x4.pmax", x, f.constantF32(0)), tail));
  };
};

/**
 * exp of x <= 0 as softmax needs it, 1.5 ulp and |x| / 28 of one (fused, where one part of ln 2 is enough: far from 0
 * the result is far below the sum's last bit); 0 below -87.69, where it would be subnormal. It is the inner loop of
 * attention: 2^n is made of the lowest bits of t, whose constant lets them be 0 at n = -127.
 */
export const decay4: Math4 = (f, x, relaxed) => {
  const [t, n, r] = f.locals("v128", 3);
  const LOWEST = -88;
  const shift = f.constantF32(MAGIC + 127);
  return () => {
    f.set(r, f.op("f32x4.pmax", x, f.constantF32(LOWEST)));
    f.set(t, madd(f, relaxed, r, f.constantF32(LOG2E), shift));
    f.set(n, f.op("f32x4.sub", t, shift));
    for (const part of relaxed ? [Math.LN2] : [LN2_HIGH, LN2_LOW]) f.set(r, madd(f, relaxed, n, f.constantF32(-part), r));
    f.run(f.op("f32x4.mul", polynomial(f, r, [1, 1, ...EXP], relaxed), f.op("i32x4.shl", t, f.i32(23))));
  };
};
