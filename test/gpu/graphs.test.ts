// Random graphs on a device, beside the same on WebAssembly (which test/runtime judges by onnxruntime).
import { expect, it } from "vitest";
import { loadModel } from "../../src/runtime/index.ts";
import { random } from "../helpers/random.ts";
import { randomGraph } from "../runtime/graphs.ts";
import { describeBackend } from "./adapter.ts";

// few: software drivers compile each chain of operators for long
const COUNT = 5;

describeBackend("random graphs", (on) => {
  it(`${COUNT} of them, twice each: the values of WebAssembly`, async () => {
    for (let seed = 1; seed <= COUNT; seed++) {
      const { integer } = random(seed);
      const { bytes, feeds, text } = randomGraph(integer, 4 + integer(14));
      const [judge, session] = [await loadModel(bytes), await loadModel(bytes, on)];
      const wanted = await judge.run(feeds);
      for (let turn = 0; turn < 2; turn++) {
        const got = await session.run(feeds);
        for (const [name, { dims, data }] of Object.entries(wanted)) {
          expect([...got[name].dims]).toEqual([...dims]);
          const [a, b] = [data, got[name].data] as [Float32Array, Float32Array];
          const rms = Math.max(1e-3, Math.sqrt(a.reduce((sum, v) => sum + v * v, 0) / a.length));
          const far = a.findIndex((v, i) => !(Math.abs(v - b[i]) <= 1e-3 * rms));
          if (far >= 0) expect.fail(`seed ${seed}, ${name}[${far}]: expected ${a[far]}, got ${b[far]}: ${text}`);
        }
      }
      await Promise.all([judge.release(), session.release()]);
    }
  }, 300_000);
});
