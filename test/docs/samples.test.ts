// Every sample of code in README and docs type-checks as a user's own file would, under `strict`, against the sources
// that the package's entries are made of.
import { existsSync, readFileSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";
import { faults, root } from "./compiler.ts";

const read = (path: string): string => readFileSync(join(root, path), "utf8");

/** What a reader has at hand where a sample begins: the data of a page, and what an earlier sample of it made. */
const AT_HAND: Readonly<Record<string, string>> = {
  "docs/onnx.md": 'import { quantizeModel } from "lowbit/onnx"; declare const input: Uint8Array;',
  "docs/runtime.md":
    'import { loadModel } from "lowbit/runtime"; import { sampler } from "lowbit/runtime"; declare const session: Awaited<ReturnType<typeof import("lowbit/runtime").loadModel>>;',
  "docs/quantizers.md": "declare const batches: Float32Array[]; declare const w: Float32Array; declare const rows: number;",
  "docs/webgpu.md": "declare const weights: Float32Array; declare const x: Float32Array; declare const n: number, k: number, m: number;",
  "docs/adding-a-format.md":
    'declare const levels: import("lowbit/formats").NumberFormat; declare const blocks: import("lowbit/formats").BlockFormat;',
};

/** The samples, as text by the name of a file beside the page. */
function samples(): Map<string, string> {
  const pages = ["README.md", ...readdirSync(join(root, "docs")).map((name) => `docs/${name}`)].filter((name) => name.endsWith(".md"));
  const found = new Map<string, string>();
  for (const page of pages)
    [...read(page).matchAll(/^```(?:ts|js|typescript|javascript)\n([^]*?)^```/gm)].forEach(([, code], i) => {
      // Names that the sample declares itself are not at hand.
      const given = (AT_HAND[page] ?? "")
        .split(/(?<=;) /)
        .filter((line) => {
          const name = /(?:const|import \{) (\w+)/.exec(line)?.[1];
          return name === undefined || !new RegExp(`^(?:const|import) .*\\b${name}\\b.* (?:=|from) `, "m").test(code);
        })
        .join(" ");
      found.set(join(root, `${page.replaceAll("/", "_")}-${i + 1}.sample.ts`), `${given}\n${code}\nexport {};`);
    });
  return found;
}

test("samples type-check under strict", { timeout: 300_000 }, () => {
  const files = samples();
  expect(files.size).toBeGreaterThan(12);
  expect(faults(files)).toEqual([]);
});

test("pages with something at hand exist", () => {
  expect(Object.keys(AT_HAND).filter((page) => !existsSync(join(root, page)))).toEqual([]);
});
