// The codecs against ONNX's own operator tests: Cast, CastLike, QuantizeLinear, DequantizeLinear (ONNX v1.22).
// Documented exceptions: ONNX has an answer for NaN to float4 (code 8, from the reference's -0) where the format has
// none and our default is an error, so the policy is named here.
import { expect, test } from "vitest";
import { float32, format, type EncodeOptions, type NumberFormat } from "../../formats/index.ts";
import { describeShared, readVectors, vectorPath } from "../helpers/shared.ts";

interface VectorTensor {
  name: string;
  dtype: string;
  dims: number[];
  codes: string[];
}
interface VectorCase {
  test?: string;
  nodes: { op: string; inputs: string[]; outputs: string[]; attrs: Record<string, number | string> }[];
  inputs: VectorTensor[];
  outputs: VectorTensor[];
}

const names: Record<string, string> = {
  FLOAT: "float32",
  FLOAT16: "float16",
  BFLOAT16: "bfloat16",
  FLOAT8E4M3FN: "float8_e4m3fn",
  FLOAT8E4M3FNUZ: "float8_e4m3fnuz",
  FLOAT8E5M2: "float8_e5m2",
  FLOAT8E5M2FNUZ: "float8_e5m2fnuz",
  FLOAT4E2M1: "float4_e2m1fn",
  FLOAT8E8M0: "float8_e8m0fnu",
};
const formatOf = (dtype: string) => format(names[dtype] ?? dtype.toLowerCase()) as NumberFormat;

const values = (t: VectorTensor): number[] =>
  t.codes.map((hex) => {
    if (t.dtype !== "DOUBLE") return formatOf(t.dtype).decode(parseInt(hex, 16));
    const view = new DataView(new ArrayBuffer(8));
    view.setBigUint64(0, BigInt(`0x${hex}`));
    return view.getFloat64(0);
  });

function expectCodes(title: string, f: NumberFormat, got: number[], want: string[]): void {
  expect(got.length).toBe(want.length);
  got.forEach((code, i) => {
    const expected = parseInt(want[i], 16);
    // NaN is compared as a class: its payload is nobody's contract.
    if (Number.isNaN(f.decode(expected))) expect(f.decode(code), `${title}[${i}]`).toBeNaN();
    else expect(code, `${title}[${i}]`).toBe(expected);
  });
}

/** The scale or zero point that applies to each element of x. */
function spread(t: VectorTensor, x: VectorTensor, attrs: Record<string, number | string>): number[] {
  const v = values(t);
  const rank = x.dims.length;
  const axis = ((Number(attrs.axis ?? 1) % rank) + rank) % rank;
  const block = Number(attrs.block_size ?? 0);
  return x.codes.map((_, i) => {
    if (v.length === 1) return v[0];
    const index: number[] = [];
    for (let d = rank - 1, rest = i; d >= 0; d--) {
      index[d] = rest % x.dims[d];
      rest = Math.floor(rest / x.dims[d]);
    }
    if (block === 0) return v[index[axis]];
    return v[index.reduce((at, n, d) => at * t.dims[d] + (d === axis ? Math.floor(n / block) : n), 0)];
  });
}

const fr = Math.fround;
const evenInteger = (x: number) => {
  const r = Math.round(x);
  return r - x === 0.5 && r % 2 !== 0 ? r - 1 : r;
};

describeShared("ONNX node tests", vectorPath("onnx-node-decoded.jsonl.gz"), (path) => {
  const cases = readVectors<VectorCase>(path).filter((c) => c.test !== undefined && c.nodes.length === 1);
  const of = (...ops: string[]) => cases.filter((c) => ops.includes(c.nodes[0].op)).map((c) => [c.test!, c] as const);
  const casts = of("Cast", "CastLike").filter(([, c]) => c.outputs[0].dtype !== "DOUBLE");

  test("there are as many as there should be", () => {
    expect(casts.length).toBeGreaterThan(70);
    expect(of("QuantizeLinear").length).toBeGreaterThanOrEqual(11);
    expect(of("DequantizeLinear").length).toBeGreaterThanOrEqual(12);
  });

  test.each(casts)("%s", (title, c) => {
    const f = formatOf(c.outputs[0].dtype);
    const { attrs } = c.nodes[0];
    const options: EncodeOptions =
      f.kind === "int"
        ? { overflow: "wrap" }
        : f.limits.min > 0
          ? { overflow: "saturate", rounding: attrs.round_mode === "down" ? "floor" : attrs.round_mode === "nearest" ? "halfCeil" : "ceil" }
          : f.bits <= 8
            ? { overflow: attrs.saturate === 0 ? f.defaults.overflow : "saturate", nan: f.limits.hasNaN ? "nan" : "negativeZero" }
            : {};
    expectCodes(
      title,
      f,
      values(c.inputs[0]).map((x) => f.encode(x, options)),
      c.outputs[0].codes,
    );
  });

  test.each(of("QuantizeLinear"))("%s", (title, c) => {
    const [x, scale, zero] = c.inputs;
    const { attrs } = c.nodes[0];
    const f = formatOf(c.outputs[0].dtype);
    const s = spread(scale, x, attrs);
    const z = zero ? spread(zero, x, attrs) : s.map(() => 0);
    const codes = values(x).map((v, i) => {
      const q = fr(v / s[i]);
      return f.kind === "int" ? f.encode(evenInteger(q) + z[i]) : f.encode(q + z[i], { overflow: "saturate" }); // -0 + 0 = +0
    });
    expectCodes(title, f, codes, c.outputs[0].codes);
  });

  test.each(of("DequantizeLinear"))("%s", (title, c) => {
    const [x, scale, zero] = c.inputs;
    const { attrs } = c.nodes[0];
    const s = spread(scale, x, attrs);
    const z = zero ? spread(zero, x, attrs) : s.map(() => 0);
    const f = formatOf(c.outputs[0].dtype);
    const codes = values(x).map((v, i) => f.encode(fr((v - z[i]) * s[i])));
    expectCodes(title, f, codes, c.outputs[0].codes);
  });
});

describeShared("decode tables of small floats", vectorPath("fp_decode.jsonl"), (path) => {
  const tables = readVectors<{ format: string; values: string[] }>(path);
  test.each(tables.map((t) => [t.format, t] as const))("%s", (name, t) => {
    const f = format(name === "e4m3" ? "float8_e4m3" : name) as NumberFormat;
    t.values.forEach((hex, code) => {
      const want = hex === "NaN" ? NaN : hex === "Inf" ? Infinity : hex === "-Inf" ? -Infinity : float32.decode(parseInt(hex, 16));
      expect(Object.is(f.decode(code), want), `${name} ${code}`).toBe(true);
    });
  });
});
