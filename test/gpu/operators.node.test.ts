// Every operator on a device, beside the same on WebAssembly (which test/runtime judges by onnxruntime): inputs as they
// should be and of wrong shapes, which give the same numbers or are refused by both.
import { expect, it } from "vitest";
import { LowbitError } from "../../src/index.ts";
import { loadModel, type RuntimeTensor, type Session } from "../../src/runtime/index.ts";
import { random } from "../helpers/random.ts";
import { bytesOf } from "../runtime/make.ts";
import { rows, spoiled } from "../runtime/operator-cases.ts";
import { describeBackend } from "./adapter.ts";

const RUNS = 8;

/** What a model gives, or null where it is refused. */
async function outcome(
  loading: Promise<Pick<Session, "run" | "release">>,
  feeds: Record<string, RuntimeTensor>,
): Promise<Record<string, RuntimeTensor> | null> {
  try {
    const session = await loading;
    const results = await session.run(feeds);
    await session.release();
    return results;
  } catch (error) {
    if (error instanceof LowbitError) return null;
    throw error;
  }
}

describeBackend("operators", (on) => {
  it.each(rows)("%s", async (label, name, make) => {
    const { integer } = random([...label].reduce((hash, c) => (31 * hash + c.charCodeAt(0)) | 0, 7));
    for (let run = 0; run < RUNS; run++) {
      const made = make(integer(1000), 1 + integer(5), 1 + integer(12), 1 + integer(40));
      if (Object.keys(made.feeds).length === 0) continue;
      const feeds = run % 2 === 0 ? made.feeds : spoiled(made.feeds, integer(10), integer(7), integer(1000));
      const before = Object.values(feeds)[0].type === "float32" && integer(2) === 0 ? "Relu" : undefined;
      const bytes = bytesOf(name, { ...made, feeds }, before);
      const [wanted, got] = [await outcome(loadModel(bytes), feeds), await outcome(loadModel(bytes, on), feeds)];
      const said = Object.entries(feeds).map(([key, { dims }]) => `${key} [${dims.join(", ")}]`).join(", "); // prettier-ignore
      expect(got === null, said).toBe(wanted === null);
      for (const [key, { dims, data }] of Object.entries(wanted ?? {})) {
        expect([...got![key].dims], said).toEqual([...dims]);
        // behind the tokens that are there a present holds anything
        if (name === "com.microsoft.GroupQueryAttention" && key !== "y") continue;
        const [a, b] = [data, got![key].data] as [ArrayLike<number>, ArrayLike<number>];
        const far = Array.from(a).findIndex(
          (v, i) => !Object.is(v, b[i]) && !(Math.abs(Number(v) - Number(b[i])) <= 2e-3 * (1 + Math.abs(Number(v)))),
        );
        if (far >= 0) expect.fail(`${key}[${far}] of ${said}: expected ${a[far]}, got ${b[far]}`);
      }
    }
  });
});
