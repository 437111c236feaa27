// The benchmark page's figures are what benches publish.
import { existsSync, readFileSync } from "node:fs";
import { expect, it } from "vitest";
import { published, type Published } from "../../bench/publish.ts";

const machine = { node: "v20.0.0", v8: "1", cpu: "a cpu", cores: 2, load: [0, 0, 0] };

it("has ratios to four digits, and null where nothing was measured", () => {
  const rows = [{ name: "a", bestMs: 1.23456, medianMs: 2, gops: 3, gbs: undefined }];
  const one = published(["gemv", "x"], "2", machine, { rows, ratios: { fast: 1.23456, none: NaN }, missing: ["peer"] });
  expect(one).toMatchObject({ family: "gemv", command: "npm run bench -- gemv x --seconds 2", machine: { node: "v20.0.0", cpu: "a cpu", cores: 2 } }); // prettier-ignore
  expect(one.rows).toEqual([{ name: "a", bestMs: 1.235, medianMs: 2, gops: 3 }]);
  expect(one.ratios).toEqual({ fast: 1.235, none: null });
  expect(JSON.parse(JSON.stringify(one))).toEqual(one);
});

it("docs/public/bench.json is such a list", () => {
  const path = new URL("../../docs/public/bench.json", import.meta.url);
  expect(existsSync(path)).toBe(true);
  const all = JSON.parse(readFileSync(path, "utf8")) as Published[];
  expect(all.length).toBeGreaterThan(0);
  for (const { family, date, command, ratios } of all) {
    expect(command).toContain(`-- ${family}`);
    expect(date).toMatch(/^\d{4}-\d\d-\d\d$/);
    expect(Object.keys(ratios).length).toBeGreaterThan(0);
  }
});
