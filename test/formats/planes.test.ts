// Planes of opaque formats: the codes, scales and minima that kernels run on are what decodeBytes gives, for any bytes.
import { describe, expect, test } from "vitest";
import { allFormats, defineOpaque, format, int4, type OpaqueFormat } from "../../formats/index.ts";
import { prepareMatmul, quantize, tensor, wasm } from "../../src/index.ts";
import { random } from "../helpers/random.ts";

const opaque = [...allFormats, format("olive4_b16"), format("olive8_b32")].filter((f): f is OpaqueFormat => f.kind === "opaque");
const withPlanes = opaque.filter((f) => f.planes !== undefined);

test("all but 8-bit outlier pairs, whose range is no 8-bit grid, have planes", () => {
  expect(opaque.filter((f) => f.planes === undefined).map((f) => f.name)).toEqual(opaque.map((f) => f.name).filter((n) => n.startsWith("olive8"))); // prettier-ignore
  expect(withPlanes.length).toBeGreaterThan(12);
});

describe.each(withPlanes.map((f) => [f.name, f] as const))("%s", (_, f) => {
  const planes = f.planes!;
  const span = planes.scales[0].span as number;

  test("code * scale + minimum is what its bytes decode to", () => {
    const rng = random(3);
    for (let round = 0; round < 40; round++) {
      const n = 1 + rng.integer(3);
      const bytes = Uint8Array.from({ length: n * f.blockBytes }, () => rng.integer(256));
      const codes = new Uint8Array(n * f.blockSize);
      const scales = new Float64Array(codes.length / span);
      const mins = new Float64Array(codes.length / span);
      f.readPlanes!(bytes, codes, scales, mins);
      const values = Float32Array.from(codes, (c, i) => {
        const run = Math.floor(i / span);
        const v = planes.element.decode(c) * scales[run];
        return planes.offset === undefined ? v : v + mins[run];
      });
      expect(values).toEqual(f.decodeBytes(bytes));
      // what kernels keep is float32: nothing is lost
      for (const v of [...scales, ...mins]) if (Number.isFinite(v) && Math.abs(v) < 3e38) expect(Math.fround(v)).toBe(v);
    }
    expect(() => f.readPlanes!(new Uint8Array(f.blockBytes - 1), new Uint8Array(f.blockSize), new Float64Array(1), new Float64Array(1))).toThrowError(/whole number of blocks/); // prettier-ignore
  });

  test("products with integer activations run on integers, and explain() says on which", async () => {
    const rng = random(5);
    const k = f.blockSize;
    const w = quantize(tensor(Float32Array.from({ length: 3 * k }, () => rng.normal()), [3, k]), f); // prettier-ignore
    for (const backend of [undefined, "wasm"] as const) {
      const layer = prepareMatmul(w, { ...(backend === undefined ? {} : { backend }), activations: "int8" });
      const said = layer.explain();
      expect(said.activations).toBe("int8");
      expect(said.reasons[0]).toContain(`${planes.element.name} codes`);
      expect(said.kernel).not.toMatch(/^f32/);
      layer.dispose();
    }
  });
});

test("ternary blocks are recognised by their codes", async () => {
  const backend = await wasm({ features: "simd" });
  const rng = random(6);
  const data = Float32Array.from({ length: 5 * 512 }, () => rng.integer(3) - 1);
  for (const name of ["ggml_tq1_0", "ggml_tq2_0"]) {
    const w = quantize(tensor(data, [5, 512]), format(name));
    const x = Float32Array.from({ length: 512 }, (_, i) => (i % 256 === 0 ? 127 : rng.integer(255) - 127));
    using layer = prepareMatmul(w, { backend, activations: "int8" });
    expect(layer.explain().kernel).toMatch(/ternary$/);
    const want = Float32Array.from({ length: 5 }, (_, r) => data.subarray(r * 512, (r + 1) * 512).reduce((sum, v, i) => sum + v * x[i], 0));
    expect(layer.run(x, 1)).toEqual(want);
    // a code 3, which stands for 2
    if (name === "ggml_tq2_0") {
      const codes = w.codes.slice();
      codes[70] |= 3;
      using other = prepareMatmul({ ...w, codes }, { backend, activations: "int8" });
      expect(other.explain().kernel).toMatch(/lookup$/);
    }
  }
  backend.dispose();
});

test("a user's own planes: decoding follows from them, and unsound ones are refused", () => {
  const own = {
    name: "test_own_planes",
    spec: "test",
    blockSize: 4,
    blockBytes: 3,
    encodeBlock: (): void => {},
    planes: {
      element: int4,
      span: 2,
      min: true,
      readBlock(bytes: Uint8Array, at: number, codes: Uint8Array, to: number, scales: Float64Array, mins: Float64Array, run: number): void {
        for (let i = 0; i < 4; i++) codes[to + i] = (bytes[at + (i >> 1)] >> (4 * (i & 1))) & 15;
        scales.set([bytes[at + 2], 2], run);
        mins.set([1, -1], run);
      },
    },
  };
  const f = defineOpaque(own);
  expect([...f.decodeBytes(Uint8Array.of(0x21, 0xf3, 5))]).toEqual([1 * 5 + 1, 2 * 5 + 1, 3 * 2 - 1, -1 * 2 - 1]);
  expect(() => defineOpaque({ ...own, planes: { ...own.planes, span: 3 } })).toThrowError(/span that divides 4/);
  expect(() => defineOpaque({ ...own, planes: { ...own.planes, element: format("int16") as never } })).toThrowError(/at most 8 bits/);
  const { planes: _, ...neither } = own;
  expect(() => defineOpaque(neither)).toThrowError(/decodeBlock or planes/);
});
