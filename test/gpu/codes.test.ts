// Operators on codes on a device, all in one model: the codes of WebAssembly, which test/runtime judges by onnxruntime.
import { expect, it } from "vitest";
import { loadModel } from "../../src/runtime/index.ts";
import { describeBackend } from "./adapter.ts";
import { CODE_CASES, codesModel } from "./code-models.ts";

describeBackend("codes", (on) => {
  it(`${CODE_CASES.length} operators on codes: the values of WebAssembly`, async () => {
    const { bytes, feeds } = codesModel(CODE_CASES);
    const [judge, session] = await Promise.all([loadModel(bytes), loadModel(bytes, on)]);
    const wanted = await judge.run(feeds);
    for (let turn = 0; turn < 2; turn++) {
      const got = await session.run(feeds);
      for (const [name, { type, dims, data }] of Object.entries(wanted)) {
        const what = `${name}, ${CODE_CASES[parseInt(name.slice(1))].op}`;
        expect([got[name].type, [...got[name].dims]], what).toEqual([type, [...dims]]);
        expect(got[name].data, what).toEqual(data);
      }
    }
    const elsewhere = session.explain().steps.filter(({ kernel }) => !["kernel", "int8", "int8 conv"].includes(kernel));
    expect(elsewhere.map(({ operator, kernel }) => `${operator}: ${kernel}`)).toEqual([]);
    await Promise.all([judge.release(), session.release()]);
  }, 120_000);
});
