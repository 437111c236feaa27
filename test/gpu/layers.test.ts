// Layers on the WebGPU backend, apart from the numbers of their formats (products.test.ts): buffers that stay on the
// device, special values, runs at once, what is left behind, what is refused, lost devices.
import { expect, it } from "vitest";
import { format } from "../../formats/index.ts";
import { matmul, prepareMatmul, quantize, tensor } from "../../src/index.ts";
import { describeBackend } from "./adapter.ts";
import { backendWith, checkProduct, data, weight } from "./product.ts";

describeBackend("layers", (on) => {
  it("inputs and results stay on the device, and chain", async () => {
    const [a, b] = [weight("int4_b32", 96, 40), weight("nf4_b64", 7, 96)];
    const x = data(3 * 40);
    const [first, second] = [prepareMatmul(a, { ...on, epilogue: "relu" }), prepareMatmul(b, on)];
    const middle: GPUBuffer = await first.runBuffer(x, 3);
    const end = await second.runBuffer(middle, 3);
    const h = await first.runAsync(x, 3);
    expect(await on.backend.read(middle, 3 * 96)).toEqual(h);
    expect(await on.backend.read(end, 3 * 7)).toEqual(await second.runAsync(h, 3));
    const own: GPUBuffer = on.backend.upload(new Float32Array(3 * 7));
    expect(await second.runBuffer(middle, 3, own)).toBe(own);
    expect(await on.backend.read(own, 21)).toEqual(await on.backend.read(end, 21));
    // float16 on the device: odd k, values that float16 holds
    const w = weight("int8_row", 5, 33);
    const halves = Uint16Array.from({ length: 66 }, (_, i) => 0x3c00 + 64 * (i % 7) + ((i & 1) << 15));
    const floats = Float32Array.from(halves, (v) => (v & 0x8000 ? -1 : 1) * (1 + (v & 0x3ff) / 1024));
    const layer = prepareMatmul(w, { ...on, activations: "float16" });
    const given = on.backend.upload(halves);
    expect(await layer.runAsync(given, 2)).toEqual(await layer.runAsync(floats, 2));
    await expect(first.runBuffer(given, 3)).rejects.toThrowError(/expected a GPUBuffer of 3 x 40 float32/);
    await expect(first.runBuffer(x, 3, given)).rejects.toThrowError(/run out/);
    await expect(first.runAsync([1, 2] as never, 1)).rejects.toThrowError(TypeError);
    for (const buffer of [middle, end, own, given]) buffer.destroy();
  }, 300_000);

  it("NaN and infinities in activations reach their row and no other", async () => {
    const w = weight("int4_b32", 20, 64);
    for (const activations of ["float32", "int16", "int8"] as const)
      for (const bad of [NaN, Infinity, -Infinity])
        for (const m of [3, 7]) {
          const x = data(m * 64);
          x[64 + 5] = bad;
          const y = await prepareMatmul(w, { ...on, activations }).runAsync(x, m);
          expect(y.every((v, i) => Number.isFinite(v) || (i >= 20 && i < 40))).toBe(true);
          expect(y.subarray(20, 40).some((v) => !Number.isFinite(v))).toBe(true);
        }
  }, 300_000);

  it("runs at once keep their own numbers; x may be a view into a larger array", async () => {
    const w = weight("int4_b32", 30, 50);
    const layer = prepareMatmul(w, on);
    const all = data(10 * 50);
    const one = await Promise.all(Array.from({ length: 10 }, (_, r) => layer.runAsync(all.subarray(r * 50, r * 50 + 50), 1)));
    for (let r = 0; r < 10; r++) expect(one[r]).toEqual(await layer.runAsync(all.slice(r * 50, r * 50 + 50), 1));
    const out = new Float32Array(30);
    expect(await layer.runAsync(all.subarray(0, 50), 1, out)).toBe(out);
    expect(out).toEqual(one[0]);
    const view = await matmul(tensor(all, [10, 50]), w, on);
    expect(view.data.length).toBe(300);
    // a transposed weight: quantized through a strided view
    const turned = quantize({ data: all, shape: [50, 10], stride: [1, 50], offset: 0 } as never, format("int8_row"));
    await checkProduct(on.backend, turned, 2);
  }, 300_000);

  it("1,000 layers leave no buffer behind; wrong shapes and disposed layers are refused", async () => {
    const w = weight("int4_b32", 16, 32);
    const x = data(32);
    const before = await backendWith({});
    await prepareMatmul(w, { backend: before }).runAsync(x, 1);
    const [buffers, bytes] = [before.buffers, before.bytes];
    for (let i = 0; i < 1000; i++) {
      const layer = prepareMatmul(w, { backend: before });
      if (i % 50 === 0) await layer.runAsync(x, 1);
      layer.dispose();
    }
    expect([before.buffers, before.bytes]).toEqual([buffers, bytes]);
    const layer = prepareMatmul(w, { backend: before });
    await expect(layer.runAsync(new Float32Array(31), 1)).rejects.toMatchObject({ code: "E_SHAPE" });
    await expect(layer.runAsync(x, 0)).rejects.toMatchObject({ code: "E_SHAPE" });
    await expect(layer.runAsync(x, 1, new Float32Array(15))).rejects.toMatchObject({ code: "E_SHAPE" });
    layer.dispose();
    layer.dispose();
    await expect(layer.runAsync(x, 1)).rejects.toMatchObject({ code: "E_DISPOSED" });
    before.dispose();
    expect([before.buffers, before.bytes]).toEqual([0, 0]);
    expect(() => prepareMatmul(w, { backend: before })).toThrowError(/disposed/);
  }, 300_000);

  it("a lost device rejects what runs, and a new backend works", async () => {
    const w = weight("int4_b32", 64, 64);
    const x = data(64);
    const lost = await backendWith({});
    const layer = prepareMatmul(w, { backend: lost });
    await layer.runAsync(x, 1);
    const running = layer.runAsync(x, 1);
    lost.device.destroy();
    await expect(running).rejects.toMatchObject({ code: "E_DEVICE" });
    await expect(layer.runAsync(x, 1)).rejects.toThrowError(/Make another backend/);
    lost.dispose();
    await checkProduct(await backendWith({}), w, 1);
  });
});
