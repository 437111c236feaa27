// The picture of README is drawn from the measured figures that the site has, and README says what it is first.
import { readFileSync } from "node:fs";
import { expect, it } from "vitest";
import { readmePictures } from "../../scripts/readme-picture.ts";

const read = (path: string): string => readFileSync(new URL(`../../${path}`, import.meta.url), "utf8");

it("is fresh (npm run generate), in both colours, for wide and narrow screens", () => {
  const files = readmePictures();
  expect(files.map(({ path }) => path)).toEqual(
    ["light", "dark", "narrow-light", "narrow-dark"].map((name) => `docs/public/dtypes-${name}.svg`),
  );
  for (const { path, text } of files) expect(read(path) === text, `${path} is stale`).toBe(true);
  const zoo = JSON.parse(read("docs/public/zoo.json")) as { rows: { model: string; dtype: string; bytes: number }[] };
  const q8 = zoo.rows.find(({ model, dtype }) => model === "kjv-llama" && dtype === "q8")!;
  expect(files[0].text).toContain(`${(q8.bytes / 1e6).toFixed(1)} MB`);
});

it("README has the command by line 6, and shows the picture", () => {
  const lines = read("README.md").split("\n");
  expect(lines.slice(0, 6).join("\n")).toContain("npx lowbit quantize model.onnx -o model_q4.onnx --dtype q4");
  for (const { path } of readmePictures()) expect(lines.join("\n")).toContain(path);
});
