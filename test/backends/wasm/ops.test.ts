// Integer products bit for bit, the Walsh-Hadamard transform inside its bound, packed embeddings.
import { describe, expect, it } from "vitest";
import { allFormats, format, type NumberFormat } from "../../../formats/index.ts";
import { fwhtReference } from "../../../kernels/reference/hadamard.ts";
import { engine } from "../../../kernels/wasm/engine/engine.ts";
import { wasmFeatures } from "../../../kernels/wasm/engine/features.ts";
import { int8Module } from "../../../kernels/wasm/dot/int8.ts";
import { wasmWith } from "../../../src/backends/wasm/backend.ts";
import { dequantize, gatherRows, quantize, tensor, wasm } from "../../../src/index.ts";

let seed = 3;
const random = (): number => (seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0) / 2 ** 32;
const byte = (extreme: boolean, unsigned: boolean): number => {
  if (extreme) return unsigned ? (random() < 0.5 ? 255 : 0) : random() < 0.5 ? -128 : 127;
  return Math.floor(random() * 256) - (unsigned ? 0 : 128);
};

describe("integer products", () => {
  it("int8 and uint8 x int8, any shape, extremes, one thread and two", async () => {
    const backends = [await wasm(), await wasm({ features: "simd" }), await wasm({ threads: 2 })];
    for (const [m, n, k] of [[1, 1, 1], [1, 16, 4], [2, 17, 3], [3, 5, 65], [4, 33, 514], [7, 40, 1100], [13, 16, 130], [131, 20, 37], [261, 3, 600]] as const)
      for (const unsigned of [false, true])
        for (const extreme of [false, true]) {
          const w = Int8Array.from({ length: n * k }, () => byte(extreme, false));
          const a = unsigned ? Uint8Array.from({ length: m * k }, () => byte(extreme, true)) : Int8Array.from({ length: m * k }, () => byte(extreme, false));
          const expected = new Int32Array(m * n);
          for (let r = 0; r < m; r++) for (let c = 0; c < n; c++) for (let i = 0; i < k; i++) expected[r * n + c] += a[r * k + i] * w[c * k + i];
          for (const backend of backends) {
            using layer = backend.prepareInteger(w, n, k);
            expect(layer.run(a, m), `${m} ${n} ${k} ${unsigned}`).toEqual(expected);
          }
        }
    expect(() => backends[0].prepareInteger(new Int8Array(5), 2, 3)).toThrowError(/expected 2 x 3/);
    const layer = backends[0].prepareInteger(new Int8Array(6), 2, 3);
    expect(() => layer.run(new Int8Array(4), 1)).toThrowError(/expected a of 1 x 3/);
    layer.dispose();
    expect(() => layer.run(new Int8Array(3), 1)).toThrowError(/disposed/);
    backends.forEach((backend) => backend.dispose());
  }); // prettier-ignore

  it("the byte kernel of engines with an exact unsigned dot product, on operands that every engine multiplies exactly", () => {
    if (!wasmFeatures().relaxed) {
      console.log("int8 dot kernel: skipped, this engine has no relaxed dot product that passed the probe");
      expect(process.env.REQUIRE_RELAXED).not.toBe("1");
      return;
    }
    // stored bytes are w + 128; w <= -1 keeps them in 7 bits
    const backend = wasmWith({ ...wasmFeatures(), dot: "u8" });
    const [m, n, k] = [140, 19, 70];
    const w = Int8Array.from({ length: n * k }, () => -1 - Math.floor(random() * 128));
    for (const unsigned of [false, true]) {
      const a = unsigned
        ? Uint8Array.from({ length: m * k }, () => byte(false, true))
        : Int8Array.from({ length: m * k }, () => byte(false, false));
      const y = backend.prepareInteger(w, n, k).run(a, m);
      for (let r = 0; r < m; r++)
        for (let c = 0; c < n; c++) {
          let sum = 0;
          // padding bytes of rows beyond k are 128, met by activations of zero
          for (let i = 0; i < k; i++) sum += a[r * k + i] * w[c * k + i];
          expect(y[r * n + c]).toBe(sum);
        }
    }
    expect(engine.validate(int8Module({ style: "dot", unsigned: true, mr: 4, unroll: 8, shared: true }))).toBe(true);
  });
});

describe("bit planes", () => {
  it("bipolar, two's complement and unsigned words of any widths, bit for bit", async () => {
    const names = ["bipolar1", "bipolar2", "bipolar4", "bipolar8", "int1", "int2", "int3", "int8", "uint1", "uint2", "uint5", "uint8"];
    const backends = [await wasm(), await wasm({ threads: 2 })];
    const formats = names.map((name) => format(name) as NumberFormat);
    for (const fw of formats)
      for (const fa of formats) {
        const [m, n, k] = [3, 5, [1, 127, 128, 300, 4100][Math.floor(random() * 5)]];
        const codes = (count: number, f: NumberFormat): Uint8Array =>
          Uint8Array.from({ length: count }, () => Math.floor(random() * 2 ** f.bits));
        const w = codes(n * k, fw);
        const a = codes(m * k, fa);
        const expected = new Int32Array(m * n);
        for (let r = 0; r < m; r++)
          for (let c = 0; c < n; c++) {
            let sum = 0;
            for (let i = 0; i < k; i++) sum += fa.decode(a[r * k + i]) * fw.decode(w[c * k + i]);
            expected[r * n + c] = sum;
          }
        for (const backend of backends) {
          using layer = backend.prepareBitplanes(w, n, k, fw);
          expect(layer.run(a, m, fa), `${fa.name} x ${fw.name}, k = ${k}`).toEqual(expected);
        }
      }
    const [backend] = backends;
    expect(() => backend.prepareBitplanes(new Uint8Array(4), 2, 2, format("nf4") as NumberFormat)).toThrowError(/evenly spaced integers/);
    expect(() => backend.prepareBitplanes([0, 1, 2, 3], 2, 2, format("bipolar1") as NumberFormat)).toThrowError(RangeError);
    expect(() => backend.prepareBitplanes([0, 1, 1], 2, 2, format("bipolar1") as NumberFormat)).toThrowError(/expected 4 codes/);
    backends.forEach((b) => b.dispose());
  });

  it("largest sums: every word at its extreme", async () => {
    const backend = await wasm();
    const k = 33000; // 33000 * 255 * 255 is just below 2^31
    const f = format("uint8") as NumberFormat;
    const codes = new Uint8Array(k).fill(255);
    expect(backend.prepareBitplanes(codes, 1, k, f).run(codes, 1, f)[0]).toBe(k * 255 * 255);
    backend.dispose();
  });
});

describe("fwht", () => {
  it("equals the reference within its bound for every size, and is its own inverse", async () => {
    const backend = await wasm();
    for (let n = 4; n <= 2 ** 14; n *= 2) {
      const rows = n > 1024 ? 1 : 3;
      const x = Float32Array.from({ length: rows * n }, () => random() * 2 - 1);
      const expected = Float64Array.from(x);
      fwhtReference(expected, n, 1 / Math.sqrt(n));
      const y = backend.fwht(x.slice(), n);
      // log2(n) additions and two roundings on a sum of n magnitudes, scaled
      const levels = Math.log2(n) + 3;
      for (let r = 0; r < rows; r++) {
        let size = 0;
        for (let i = 0; i < n; i++) size += Math.abs(x[r * n + i]);
        const bound = (levels * 2 ** -24 * size) / Math.sqrt(n);
        for (let i = 0; i < n; i++) expect(Math.abs(y[r * n + i] - expected[r * n + i])).toBeLessThanOrEqual(bound);
        const back = backend.fwht(y.slice(r * n, (r + 1) * n), n);
        for (let i = 0; i < n; i++) expect(Math.abs(back[i] - x[r * n + i])).toBeLessThanOrEqual(2 * levels * 2 ** -24 * size);
      }
    }
    expect(Array.from(backend.fwht(Float32Array.from([1, 2, 3, 4]), 4, 1))).toEqual([10, -2, -4, 0]);
    expect(() => backend.fwht(new Float32Array(12), 12)).toThrowError(/power of two/);
    expect(() => backend.fwht(new Float32Array(12), 8)).toThrowError(/rows of 8/);
    const used = backend.bytes;
    backend.fwht(new Float32Array(1 << 21), 1 << 20);
    expect(backend.bytes).toBe(used);
    backend.dispose();
  });
});

describe("gatherRows", () => {
  it("decodes the rows asked for, in the order asked, of every format", () => {
    const named = ["int4_b32", "int8_row", "float8_e4m3fn_tensor", "uint4_b32_zp", "nf4_b64_dq", "posit16_es1_row", "olive8_b32"];
    let odd = 0;
    for (const f of [...allFormats, ...named.map((name) => format(name))]) {
      const whole = f.kind === "opaque" || (f.kind === "block" && f.tail === "error");
      const span = f.kind === "opaque" ? f.blockSize : f.kind === "block" ? f.scales[0].span : 1;
      // rows that end inside a byte and a block where the format allows it
      const [n, k] = [20, typeof span !== "number" ? 33 : whole ? 2 * span : span + 1];
      if (!whole) odd++;
      const w = quantize(
        tensor(
          Float32Array.from({ length: n * k }, () => random() - 0.5),
          [n, k],
        ),
        f,
      );
      const all = dequantize(w);
      const ids = [5, 6, 7, 0, 19, 5];
      const got = gatherRows(w, ids);
      expect(got.shape).toEqual([6, k]);
      ids.forEach((id, i) => expect(got.data.subarray(i * k, (i + 1) * k), f.name).toEqual(all.subarray(id * k, (id + 1) * k)));
      const out = new Float32Array(k);
      expect(gatherRows(w, [19], out).data).toBe(out);
      expect(out, f.name).toEqual(all.subarray(19 * k));
      expect(() => gatherRows(w, [20])).toThrowError(/from 0 to 19/);
      expect(() => gatherRows(w, [-1])).toThrowError(/from 0 to 19/);
      expect(() => gatherRows(w, [1.5])).toThrowError(/ids\[0\]/);
      expect(() => gatherRows(w, [])).toThrowError(/at least one/);
      expect(() => gatherRows(w, [0], new Float32Array(k + 1))).toThrowError(/gatherRows out/);
    }
    expect(odd).toBeGreaterThan(allFormats.length / 2);
  });
});
