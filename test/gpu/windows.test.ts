// Operators of convolutional networks on a device, each shape once, all in one model: software drivers compile for
// seconds, and the shapes share their kernels. The judge is WebAssembly, which test/runtime judges by onnxruntime.
import { expect, it } from "vitest";
import { quantizeModelBytes } from "../../src/onnx/index.ts";
import { loadModel } from "../../src/runtime/index.ts";
import { describeBackend } from "./adapter.ts";
import { chainedModel, windowModel, WINDOWS } from "./window-cases.ts";

describeBackend("windows", (on) => {
  it(`${WINDOWS.length} shapes of convolution and pooling: the values of WebAssembly`, async () => {
    const { bytes, feeds } = windowModel(WINDOWS);
    const [judge, session] = await Promise.all([loadModel(bytes), loadModel(bytes, on)]);
    const wanted = await judge.run(feeds);
    const got = await session.run(feeds);
    WINDOWS.forEach(({ op, x }, i) => {
      const [a, b] = [wanted[`y${i}`], got[`y${i}`]];
      expect([...b.dims], `${op} of [${x}]`).toEqual([...a.dims]);
      const [data, other] = [a.data, b.data] as [Float32Array, Float32Array];
      const far = data.findIndex((v, at) => !(Math.abs(v - other[at]) <= 2e-5));
      if (far >= 0) expect.fail(`${op} of [${x}] (${i}), ${far}: expected ${data[far]}, got ${other[far]}`);
    });
    const elsewhere = session.explain().steps.filter(({ kernel }) => kernel !== "kernel");
    expect(elsewhere.map(({ operator, kernel }) => `${operator}: ${kernel}`)).toEqual([]);
    await Promise.all([judge.release(), session.release()]);
  }, 120_000);

  it.each([
    ["floats", 2e-6],
    // a code of an activation that falls to the other side of a tie
    ["codes", 1e-2],
  ])(
    "convolutions of %s, and chains behind them: what is read again or leaves is what it was",
    async (of, limit) => {
      const { bytes: plain, feeds } = chainedModel();
      const bytes = of === "codes" ? (await quantizeModelBytes(plain, { dtype: "uint8" })).bytes : plain;
      const [judge, session] = await Promise.all([loadModel(bytes), loadModel(bytes, on)]);
      const wanted = await judge.run(feeds);
      for (let turn = 0; turn < 2; turn++) {
        const got = await session.run(feeds);
        for (const [name, { data }] of Object.entries(wanted)) {
          const [a, b] = [data, got[name].data] as [Float32Array, Float32Array];
          const far = a.findIndex((v, i) => !(Math.abs(v - b[i]) <= limit));
          if (far >= 0) expect.fail(`${name}[${far}]: expected ${a[far]}, got ${b[far]}`);
        }
      }
      const products = session.explain().steps.filter(({ operator }) => operator === (of === "codes" ? "lowbit.Scaled" : "Conv"));
      expect(products.map(({ kernel }) => kernel)).toEqual(new Array(5).fill(of === "codes" ? "int8 conv" : "kernel"));
      await Promise.all([judge.release(), session.release()]);
    },
    120_000,
  );
});
