// The published figures of bench/formats-statistics.ts with fewer samples: errors on Gaussian and Laplace data,
// crossovers, Monte Carlo ratios.
import { describe, expect, test } from "vitest";
import { crossover, crossovers, published, qsnr, qsnrTable, relativeError, sample } from "../helpers/statistics.ts";

const N = 2 ** 17;
const data = { gaussian: sample("gaussian", N, 1), laplace: sample("laplace", N, 2) };

describe.each(["gaussian", "laplace"] as const)("relative error, %s", (d) => {
  const rows = published.filter((r) => r[d] !== undefined && r.note === undefined);
  test.each(rows.map((r) => [`${r.format} ${r.rule ?? ""}`, r] as const))("%s", (_, r) => {
    const ratio = relativeError(r.format, data[d], r.rule ? { scaleRule: r.rule } : {}) / r[d]!;
    // 128 blocks of 1024 say less than 4096 of 32. The bench has sixteen times the samples and 1 %.
    expect(Math.abs(ratio - 1)).toBeLessThan(r.format.endsWith("_b1024") ? 0.06 : 0.025);
  });
});

test("a wider search finds more", () => {
  expect(relativeError("nvfp4", data.gaussian, { scaleRule: "mseSweep" })).toBeLessThan(
    0.93 * relativeError("nvfp4", data.gaussian, { scaleRule: "mse" }),
  );
});

test.each(crossovers.map((c) => [c.pair, c] as const))("crossover %s", (_, c) => {
  const { kappa, db } = crossover(c);
  expect(Math.abs(kappa - c.kappa)).toBeLessThanOrEqual(0.01);
  expect(Math.abs(db - c.db)).toBeLessThanOrEqual(0.02);
});

test.each(qsnrTable.map((r) => [r.format, r] as const))("QSNR of %s: normal, Laplace, Laplace after Hadamard", (_, r) => {
  for (const [i, v] of qsnr(r, 3000, 7).entries()) expect(Math.abs(v - r.db[i]), `column ${i}: ${v}`).toBeLessThanOrEqual(0.3);
});

test("a Hadamard transform helps nvint4 and mxfp4 on Laplace data and hurts nvfp4", () => {
  const gain = (format: string) => {
    const [, before, after] = qsnr(
      qsnrTable.find((r) => r.format === format)!,
      3000,
      11,
    );
    return after - before;
  };
  expect(gain("nvint4")).toBeGreaterThan(1);
  expect(gain("mxfp4")).toBeGreaterThan(0.8);
  expect(gain("nvfp4")).toBeLessThan(0);
});
