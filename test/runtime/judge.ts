// One model, two runtimes: ours and onnxruntime-node on the same feeds.
import { InferenceSession, Tensor } from "onnxruntime-node";
import { expect } from "vitest";
import type { RuntimeTensor, Session } from "../../src/runtime/index.ts";
import { loadModel } from "../../src/runtime/index.ts";

export type Feeds = Record<string, RuntimeTensor>;

/** Float values in another order. */
const turned = (feeds: Feeds): Feeds =>
  Object.fromEntries(
    Object.entries(feeds).map(([name, f]) => [
      name,
      f.type === "float32" ? { ...f, data: Float32Array.from(f.data as Float32Array).reverse() } : f,
    ]),
  );

/** Runs that follow, on other values and again on these, give bit by bit the same: steps repeat what they did before. */
async function repeats(session: Running, feeds: Feeds, first: Record<string, RuntimeTensor>): Promise<void> {
  for (let i = 0; i < 3; i++) await session.run(turned(feeds)).catch(() => undefined);
  const again = await session.run(feeds);
  for (const [name, { dims, data }] of Object.entries(first)) {
    expect(again[name].dims).toEqual(dims);
    expect(again[name].data, `${name}, again`).toEqual(data);
  }
}

/** A session on any backend. */
type Running = Pick<Session, "run" | "release">;

/**
 * Largest difference over the root mean square of what onnxruntime gives (or over `least`, where that is larger); exact
 * for integers.
 */
export async function compare(bytes: Uint8Array, feeds: Feeds, limit: number, session?: Running, least = 1): Promise<void> {
  const judge = await InferenceSession.create(bytes, { logSeverityLevel: 4, graphOptimizationLevel: "disabled", intraOpNumThreads: 1 });
  const own = session ?? (await loadModel(bytes));
  const tensors = Object.entries(feeds).map(([name, f]) => [name, new Tensor(f.type as "float32", f.data as Float32Array, f.dims)]);
  const wanted = await judge.run(Object.fromEntries(tensors) as Record<string, Tensor>);
  const got = await own.run(feeds);
  await repeats(own, feeds, got);
  expect(Object.keys(got)).toEqual([...judge.outputNames]);
  for (const name of judge.outputNames) {
    const a = wanted[name];
    const b = got[name];
    expect([b.type, [...b.dims]]).toEqual([a.type, [...a.dims]]);
    if (a.type !== "float32") {
      expect([...(b.data as Int32Array)]).toEqual([...(a.data as Int32Array)]);
      continue;
    }
    const x = a.data as Float32Array;
    const y = b.data as Float32Array;
    const rms = Math.max(least, Math.sqrt(x.reduce((s, v) => s + v * v, 0) / Math.max(x.length, 1)));
    let worst = 0;
    for (let i = 0; i < x.length; i++)
      if (!Object.is(x[i], y[i])) worst = Math.max(worst, Number.isNaN(y[i] - x[i]) ? Infinity : Math.abs(y[i] - x[i]) / rms);
    expect(worst, name).toBeLessThanOrEqual(limit);
  }
  await judge.release();
  if (session === undefined) await own.release();
}
