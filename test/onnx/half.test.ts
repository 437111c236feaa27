// The fast float16 conversion against the format's codec: every code, and float32 values at, beside and between its
// boundaries.
import { describe, expect, it } from "vitest";
import { float16 } from "../../formats/float16.ts";
import { encodeHalf, halfTable } from "../../src/onnx/file/half.ts";

describe("float16", () => {
  it("decodes every code", () => {
    const table = halfTable();
    for (let code = 0; code < 65536; code++) {
      if (!Object.is(table[code], float16.decode(code))) expect.unreachable(`code ${code}: ${table[code]} and ${float16.decode(code)}`);
    }
  });
  it("encodes every value, every boundary between two, and the float32 beside them", () => {
    const bits = new Uint32Array(1);
    const float = new Float32Array(bits.buffer);
    const beside = (value: number, step: number): number => {
      float[0] = value;
      bits[0] += step;
      return float[0];
    };
    const check = (value: number): void => {
      const want = float16.encode(value, { overflow: "inf" });
      if (encodeHalf(value) !== want) expect.unreachable(`${value}: ${encodeHalf(value)} and ${want}`);
    };
    for (let code = 0; code < 0x7c00; code++) {
      const value = float16.decode(code);
      const middle = (value + (code === 0x7bff ? 65536 : float16.decode(code + 1))) / 2;
      for (const x of [value, middle, beside(middle, 1), beside(middle, -1), beside(value, 1)]) {
        check(x);
        check(-x);
      }
    }
    for (const x of [Infinity, -Infinity, 1e30, -1e30, 1e-30, 2 ** -25, 2 ** -149]) check(x);
    expect(encodeHalf(NaN)).toBe(0x7e00);
  });
});
