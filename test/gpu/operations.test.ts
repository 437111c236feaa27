// Operations of the WebGPU backend: integer products bit for bit the oracle's and WebAssembly's, codecs bit for bit the
// table and the scalar encoder, the Walsh-Hadamard transform equal to float32 butterflies. Odd sizes, splits above the
// binding limit, wrong arguments.
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { compileExpr, decodeExpr } from "../../formats/core/expr.ts";
import { allFormats, encodeArray, format, isLowbitError, type EncodeOptions, type NumberFormat } from "../../formats/index.ts";
import { fwhtReference } from "../../kernels/reference/hadamard.ts";
import type { GpuRoot } from "../../kernels/wgsl/api.ts";
import { createGpuRuntime, type GpuRuntime } from "../../kernels/wgsl/runtime.ts";
import { connect } from "../../src/backends/webgpu/device.ts";
import { decode, encode, fwht, prepareBitplanes, prepareInteger } from "../../src/backends/webgpu/ops.ts";
import { createWebGpu } from "../../src/backends/webgpu/backend.ts";
import { wasm } from "../../src/index.ts";
import { normalArray, random } from "../helpers/random.ts";
import { adapterName, describeGpu, entryPoint, spread, takesAll } from "./adapter.ts";

const scalars = allFormats.filter((f): f is NumberFormat => f.kind !== "block" && f.kind !== "opaque" && f.bits <= 16);

const chosen = spread("codecs", scalars, 5);

async function make(limits?: object): Promise<GpuRuntime> {
  const { device } = await connect({ gpu: (await entryPoint()) as unknown as GpuRoot });
  return createGpuRuntime(device, { own: true, ...(limits === undefined ? {} : { limits }) });
}

/** Where two arrays differ first, in words. */
function difference(got: ArrayLike<number>, expected: ArrayLike<number>): string {
  if (got.length !== expected.length) return `${got.length} values, expected ${expected.length}`;
  for (let i = 0; i < got.length; i++) if (!Object.is(got[i], expected[i])) return `[${i}]: ${got[i]}, expected ${expected[i]}`;
  return "none";
}

/** Textbook butterflies, rounded to float32 at every step. */
function butterflies(x: Float32Array, n: number, scale: number): Float32Array {
  const y = x.slice();
  for (let row = 0; row < y.length; row += n)
    for (let h = 1; h < n; h *= 2)
      for (let i = row; i < row + n; i += 2 * h) for (let j = i; j < i + h; j++) [y[j], y[j + h]] = [y[j] + y[j + h], y[j] - y[j + h]];
  return y.map((v) => v * Math.fround(scale));
}

describeGpu(`WebGPU operations on ${adapterName}`, () => {
  let runtime: GpuRuntime;
  beforeAll(async () => {
    runtime = await make();
  });
  afterAll(() => runtime.dispose());

  describe("Walsh-Hadamard", () => {
    it.each([4, 8, 64, 256, 1024, 2048, 4096, 8192, 2 ** 14, 2 ** 16].map((n) => [n]))("rows of %i", async (n) => {
      const rows = n > 4096 ? 2 : n > 64 ? 3 : 67;
      const x = normalArray(rows * n, n);
      const scale = 1 / Math.sqrt(n);
      const y = await fwht(runtime, x.slice(), n, scale);
      expect(difference(y, butterflies(x, n, scale))).toBe("none");
      // and against binary64: each of log2(n) levels rounds once, values grow to |x|_1 * scale
      const exact = Float64Array.from(x);
      fwhtReference(exact, n, scale);
      let norm = 0;
      for (let i = 0; i < n; i++) norm += Math.abs(x[i]);
      for (let i = 0; i < n; i++) expect(Math.abs(y[i] - exact[i])).toBeLessThanOrEqual((Math.log2(n) + 2) * 2 ** -24 * norm * scale);
    });

    it("rows in several submissions, where a binding holds few", async () => {
      const small = await make({ binding: 4 * 256 * 3 });
      const x = normalArray(256 * 10, 5);
      expect(difference(await fwht(small, x.slice(), 256, 0.5), butterflies(x, 256, 0.5))).toBe("none");
      await expect(fwht(small, new Float32Array(4096), 4096, 1)).rejects.toMatchObject({ code: "E_DEVICE" });
      small.dispose();
    });

    it("refuses sizes as the WebAssembly backend does", async () => {
      await expect(fwht(runtime, new Float32Array(12), 6, 1)).rejects.toMatchObject({ code: "E_SHAPE" });
      await expect(fwht(runtime, new Float32Array(12), 8, 1)).rejects.toMatchObject({ code: "E_SHAPE" });
    });
  });

  describe("codecs", () => {
    it(`decode every code of ${chosen.length} of ${scalars.length} formats`, async () => {
      const wrong: string[] = [];
      for (const f of scalars) {
        const codes =
          f.bits <= 8 ? Uint8Array.from({ length: 2 ** f.bits }, (_, c) => c) : Uint16Array.from({ length: 2 ** f.bits }, (_, c) => c);
        const values = await decode(runtime, f, codes);
        const at = values.findIndex((v, c) => !Object.is(v, Math.fround(f.table![c])));
        if (at >= 0) wrong.push(`${f.name} code ${at}: expected ${f.table![at]}, got ${values[at]}`);
      }
      expect(wrong).toEqual([]);
    }, 240_000);

    /** Values with their neighbours, boundaries, specials, every exponent, random words. */
    function words(f: NumberFormat): Float32Array<ArrayBuffer> {
      const list: number[] = [
        0, 0x80000000, 0x7f800000, 0xff800000, 0x7fc00000, 0xffc00001, 1, 0x80000001, 0x7fffff, 0x7f7fffff, 0xff7fffff,
      ];
      const { values, boundaries } = f.order!;
      const f32 = new Float32Array(1);
      const u32 = new Uint32Array(f32.buffer);
      const stride = Math.max(1, Math.floor(values.length / 300));
      for (let i = 0; i < values.length; i += stride)
        for (const x of [values[i], boundaries[i] ?? 2 * values[i]]) {
          f32[0] = x;
          for (const step of [-1, 0, 1]) list.push((u32[0] + step) >>> 0);
        }
      for (let e = 0; e < 512; e++) for (const m of [0, 1, 0x400000, 0x7fffff]) list.push(((e << 23) | m) >>> 0);
      const rng = random(9);
      for (let i = 0; i < 1000; i++) list.push(rng.integer(2 ** 32));
      return new Float32Array(Uint32Array.from(list).buffer);
    }

    it.each([
      ["defaults, saturating", {}],
      ["half away from zero", { rounding: "halfExpand" }],
    ] as [string, EncodeOptions][])(
      `encode around every boundary of ${chosen.length} of ${scalars.length} formats: %s`,
      async (_, options) => {
        const wrong: string[] = [];
        // the second policy makes tables of every format, one shader like the other
        for (const f of options.rounding === undefined ? chosen : chosen.slice(0, 20)) {
          const policy: EncodeOptions = { overflow: "saturate", nan: f.limits.hasNaN ? "nan" : "max", ...options };
          const x = words(f);
          const codes = await encode(runtime, f, x, policy);
          const at = codes.findIndex((c, i) => c !== f.encode(x[i], policy));
          if (at >= 0) wrong.push(`${f.name} ${x[at]}: expected ${f.encode(x[at], policy)}, got ${codes[at]}`);
        }
        expect(wrong).toEqual([]);
      },
      240_000,
    );

    it("lengths that end inside a word, and several submissions", async () => {
      const small = await make({ binding: 512 });
      for (const f of scalars.filter((s) =>
        ["int4", "int3", "uint1", "int5", "float6_e2m3fn", "posit16_es1", "float8_e4m3fn"].includes(s.name),
      ))
        for (const count of [1, 2, 31, 33, 127, 128, 129, 1001]) {
          const x = normalArray(count, count);
          const expected = encodeArray(f, x, undefined, { overflow: "saturate" });
          for (const device of [runtime, small]) {
            const codes = await encode(device, f, x, { overflow: "saturate" });
            expect(difference(codes, expected), `${f.name} x ${count}`).toBe("none");
            const values = await decode(device, f, codes);
            const back = new Float32Array(Uint32Array.from(codes, compileExpr(decodeExpr(f)!)).buffer);
            expect(difference(values, back), `${f.name} x ${count}`).toBe("none");
          }
        }
      small.dispose();
    });

    it("a value that the policy refuses is an error with its index; wide formats and stochastic rounding are refused", async () => {
      const x = normalArray(300, 1);
      x[70] = 1e6;
      x[200] = 1e7;
      const f = format("int4") as NumberFormat;
      await expect(encode(runtime, f, x, { overflow: "error" })).rejects.toMatchObject({
        code: "E_VALUE",
        message: expect.stringContaining("values[70]"),
      });
      const wide = format("posit32_es2") as NumberFormat;
      await expect(encode(runtime, wide, x)).rejects.toMatchObject({ code: "E_UNSUPPORTED" });
      await expect(decode(runtime, wide, new Uint32Array(4))).rejects.toMatchObject({ code: "E_UNSUPPORTED" });
      await expect(encode(runtime, f, x, { rounding: "stochastic", random: Math.random })).rejects.toSatisfy((e) => isLowbitError(e));
    });
  });

  describe("integer products", () => {
    const codesOf = (count: number, bits: number, seed: number): Uint8Array => {
      const rng = random(seed);
      return Uint8Array.from({ length: count }, () => rng.integer(2 ** bits));
    };
    /** Sums in integers modulo 2^32, from the values of the codes. */
    function product(a: readonly number[], w: readonly number[], m: number, n: number, k: number): Int32Array {
      const y = new Int32Array(m * n);
      for (let r = 0; r < m; r++)
        for (let j = 0; j < n; j++) {
          let sum = 0;
          for (let i = 0; i < k; i++) sum = (sum + Math.imul(a[r * k + i], w[j * k + i])) | 0;
          y[r * n + j] = sum;
        }
      return y;
    }
    const valuesOf = (codes: Uint8Array, f: NumberFormat): number[] => Array.from(codes, (c) => f.table![c]);

    it.each(
      [
        ["bipolar1", "bipolar1"],
        ["int4", "bipolar2"],
        ["bipolar4", "bipolar3"],
        ["uint8", "int8"],
        ["bipolar2", "bipolar1"],
        ["int8", "bipolar8"],
        ["uint1", "int5"],
        ["int3", "uint7"],
        ["bipolar6", "int6"],
      ].slice(0, takesAll("codecs") ? undefined : 4),
    )("bit planes, %s x %s: the oracle's and WebAssembly's bits", async (activation, weight) => {
      const [fa, fw] = [format(activation) as NumberFormat, format(weight) as NumberFormat];
      const cpu = await wasm();
      for (const [m, n, k] of [
        [1, 1, 1],
        [1, 65, 129],
        [5, 64, 128],
        [6, 130, 1000],
      ]) {
        const w = codesOf(n * k, fw.bits, n);
        const layer = await prepareBitplanes(runtime, w, n, k, fw);
        const a = codesOf(m * k, fa.bits, m);
        const y = await layer.runAsync(a, m, fa);
        expect(difference(y, product(valuesOf(a, fa), valuesOf(w, fw), m, n, k))).toBe("none");
        expect(difference(y, cpu.prepareBitplanes(w, n, k, fw).run(a, m, fa))).toBe("none");
        layer.dispose();
        await expect(layer.runAsync(a, m, fa)).rejects.toMatchObject({ code: "E_DISPOSED" });
      }
      cpu.dispose();
    });

    it.each([
      ["int8", false],
      ["uint8", true],
    ] as const)("%s x int8: exact, extremes included", async (_, unsigned) => {
      const cpu = await wasm();
      for (const [m, n, k] of [
        [1, 1, 1],
        [1, 67, 33],
        [9, 64, 16],
        [17, 100, 515],
      ]) {
        const w = new Int8Array(codesOf(n * k, 8, n + k).buffer);
        w.fill(-128, 0, k);
        const bytes = codesOf(m * k, 8, m + k);
        bytes.fill(unsigned ? 255 : 128, 0, k);
        const a = unsigned ? bytes : new Int8Array(bytes.buffer);
        const layer = await prepareInteger(runtime, w, n, k);
        const y = await layer.runAsync(a, m);
        expect(difference(y, product([...a], [...w], m, n, k))).toBe("none");
        expect(difference(y, cpu.prepareInteger(w, n, k).run(a, m))).toBe("none");
        layer.dispose();
      }
      cpu.dispose();
    });

    it("weights and activations above the binding limit are split; nothing is left behind", async () => {
      const small = await make({ binding: 64 * 1024 });
      const [m, n, k] = [40, 300, 2048];
      const f = format("int4") as NumberFormat;
      const [a, w] = [codesOf(m * k, 4, 1), codesOf(n * k, 4, 2)];
      // one round: what scratch there is stays
      for (let i = 0; i < 3; i++) {
        const before = small.buffers;
        const layer = await prepareBitplanes(small, w, n, k, f);
        expect(small.buffers - before).toBe(5);
        expect(difference(await layer.runAsync(a, m, f), product(valuesOf(a, f), valuesOf(w, f), m, n, k))).toBe("none");
        layer.dispose();
        if (i > 0) expect(small.buffers).toBe(before);
      }
      small.dispose();
    });

    it("wrong codes, sizes and formats are refused", async () => {
      const f = format("int4") as NumberFormat;
      await expect(prepareBitplanes(runtime, [16], 1, 1, f)).rejects.toThrow(RangeError);
      await expect(prepareBitplanes(runtime, [1], 1, 2, f)).rejects.toMatchObject({ code: "E_SHAPE" });
      await expect(prepareBitplanes(runtime, [1], 1, 1, format("e2m1") as NumberFormat)).rejects.toMatchObject({ code: "E_UNSUPPORTED" });
      await expect(prepareInteger(runtime, new Int8Array(3), 2, 2)).rejects.toMatchObject({ code: "E_SHAPE" });
    });
  });

  it("the backend offers them, and refuses once it is disposed", async () => {
    const { device } = await connect({ gpu: (await entryPoint()) as unknown as GpuRoot });
    const backend = createWebGpu(device, { own: true });
    const int4 = format("int4") as NumberFormat;
    const x = normalArray(64, 3);
    const codes = await backend.encode(int4, x, { overflow: "saturate" });
    expect(difference(codes, encodeArray(int4, x, undefined, { overflow: "saturate" }))).toBe("none");
    const values = await backend.decode(int4, codes);
    expect(
      difference(
        values,
        Float32Array.from(codes, (c) => int4.table![c]),
      ),
    ).toBe("none");
    expect(difference(await backend.fwht(x.slice(), 64), butterflies(x, 64, 1 / 8))).toBe("none");
    const planes = await backend.prepareBitplanes([1, 2, 3, 15], 2, 2, int4);
    expect([...(await planes.runAsync([1, 15], 1, int4))]).toEqual([1 - 2, 3 + 1]);
    const bytes = await backend.prepareInteger(Int8Array.of(1, 2, 3, -4), 2, 2);
    expect([...(await bytes.runAsync(Int8Array.of(5, -6), 1))]).toEqual([5 - 12, 15 + 24]);
    backend.dispose();
    await expect(backend.fwht(x, 64)).rejects.toMatchObject({ code: "E_DISPOSED" });
    await expect(bytes.runAsync(Int8Array.of(5, -6), 1)).rejects.toMatchObject({ code: "E_DISPOSED" });
  });
});
