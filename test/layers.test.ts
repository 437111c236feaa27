// The shape of the tree: imports go one way, shared code names no format, generated files are fresh.
import { readdirSync, readFileSync } from "node:fs";
import { dirname, join, relative, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { expect, test } from "vitest";
import { allFormats } from "../formats/index.ts";
import { generated } from "../scripts/generate.ts";

const root = fileURLToPath(new URL("..", import.meta.url));
const read = (path: string) => readFileSync(join(root, path), "utf8");
const sources = ["formats", "kernels", "src"].flatMap((dir) =>
  readdirSync(join(root, dir), { recursive: true, encoding: "utf8" })
    .filter((f) => f.endsWith(".ts"))
    .map((f) => `${dir}/${f.replaceAll("\\", "/")}`),
);

/** Lower layers first; a file may import from its own layer and from those it may see. */
const layers: readonly { name: string; owns: (path: string) => boolean; sees: readonly string[] }[] = [
  { name: "formats", owns: (p) => p.startsWith("formats/"), sees: [] },
  { name: "files", owns: (p) => p.startsWith("src/files/"), sees: ["formats"] },
  { name: "kernels", owns: (p) => p.startsWith("kernels/"), sees: ["formats"] },
  { name: "backends", owns: (p) => p.startsWith("src/backends/"), sees: ["formats", "kernels"] },
  { name: "tensor", owns: (p) => p.startsWith("src/tensor/"), sees: ["formats", "kernels", "backends"] },
  { name: "interop", owns: (p) => p.startsWith("src/interop/"), sees: ["formats", "files", "kernels", "backends", "tensor"] },
  { name: "tfjs", owns: (p) => p.startsWith("src/tfjs/"), sees: ["formats", "files", "kernels", "backends", "tensor", "interop"] },
  { name: "testing", owns: (p) => p.startsWith("src/testing/"), sees: ["formats", "tensor"] },
  { name: "quantize", owns: (p) => p.startsWith("src/quantize/"), sees: ["formats", "kernels", "backends", "tensor"] },
  {
    name: "search",
    owns: (p) => p.startsWith("src/search/"),
    sees: ["formats", "kernels", "backends", "tensor", "quantize"],
  },
  {
    name: "onnx",
    owns: (p) => p.startsWith("src/onnx/"),
    sees: ["formats", "files", "kernels", "backends", "tensor", "quantize", "interop"],
  },
  {
    name: "runtime",
    owns: (p) => p.startsWith("src/runtime/"),
    sees: ["formats", "files", "kernels", "backends", "tensor", "quantize", "onnx", "interop"],
  },
  {
    name: "cli",
    owns: (p) => p.startsWith("src/cli/"),
    sees: ["formats", "files", "kernels", "backends", "tensor", "quantize", "onnx", "interop", "search"],
  },
  { name: "index", owns: (p) => p === "src/index.ts", sees: ["formats", "kernels", "backends", "tensor", "quantize"] },
];
const layerOf = (path: string) => layers.find((l) => l.owns(path));

function importsOf(path: string): string[] {
  const text = read(path);
  // Type-only imports of node modules cost nothing and are erased.
  return [...text.replace(/import type [^;]*from "node:[^;]*;/g, "").matchAll(/(?:from|import\()\s*"([^"]+)"/g)].map((m) => m[1]);
}

test("every source file belongs to a layer", () => {
  expect(sources.length).toBeGreaterThan(30);
  expect(sources.filter((s) => !layerOf(s))).toEqual([]);
});

test("imports go one way", () => {
  const wrong: string[] = [];
  for (const path of sources) {
    const layer = layerOf(path)!;
    for (const specifier of importsOf(path)) {
      if (!specifier.startsWith(".")) continue;
      const target = relative(root, resolve(root, dirname(path), specifier)).replaceAll("\\", "/");
      const to = layerOf(target);
      if (!to || (to.name !== layer.name && !layer.sees.includes(to.name)))
        wrong.push(`${path} (${layer.name}) imports ${target} (${to?.name ?? "?"})`);
    }
  }
  expect(wrong).toEqual([]);
});

test("comments are at most 120 columns wide", () => {
  const written = sources.filter((path) => !path.includes("/gen/"));
  const wide = written.flatMap((path) =>
    read(path)
      .split("\n")
      .filter((line) => line.length > 120 && /^\s*(\/\/|\/?\*)/.test(line))
      .map((line) => `${path}: ${line}`),
  );
  expect(wide).toEqual([]);
});

test("no import cycles", () => {
  const graph = new Map(
    sources.map((path) => [
      path,
      importsOf(path)
        .filter((s) => s.startsWith("."))
        .map((s) => relative(root, resolve(root, dirname(path), s)).replaceAll("\\", "/")),
    ]),
  );
  const state = new Map<string, "open" | "done">();
  const cycles: string[] = [];
  const visit = (path: string, trail: string[]) => {
    if (state.get(path) === "done") return;
    if (state.get(path) === "open") {
      cycles.push([...trail.slice(trail.indexOf(path)), path].join(" -> "));
      return;
    }
    state.set(path, "open");
    for (const next of graph.get(path) ?? []) visit(next, [...trail, path]);
    state.set(path, "done");
  };
  for (const path of sources) visit(path, []);
  expect(cycles).toEqual([]);
});

test("shared code compares with no format name", () => {
  // Plain integers and IEEE floats double as activation and dtype names; every other name is forbidden in shared code.
  const plain = new Set(["int", "float"]);
  const names = allFormats.filter((f) => !plain.has(f.kind) || /_/.test(f.name)).map((f) => f.name);
  const families = ["posit[0-9]", "bipolar[0-9]", "nf[34]\\b", "af4\\b", "mxfp", "mxint", "nvfp", "nvint", "ggml_", "iq4", "float[468]_"];
  const pattern = new RegExp(`["'\`](?:${[...names, ...families.map((f) => `${f}[a-z0-9_]*`)].join("|")})["'\`]`);
  const found = sources
    .filter((p) => !p.startsWith("formats/") && !p.startsWith("src/cli/") && !p.includes("/gen/"))
    .flatMap((p) =>
      read(p)
        .split("\n")
        .map((line, i) => ({ line, at: `${p}:${i + 1}` }))
        .filter(({ line }) => pattern.test(line) && !/^\s*(\/\/|\*|\/\*)/.test(line)),
    );
  expect(found).toEqual([]);
});

test("formats, kernels, backends and tensor name no node module and no package", () => {
  const pure = new Set(["formats", "kernels", "backends", "tensor"]);
  const found = sources.flatMap((p) =>
    pure.has(layerOf(p)!.name)
      ? importsOf(p)
          .filter((s) => !s.startsWith("."))
          .map((s) => `${p}: ${s}`)
      : [],
  );
  expect(found).toEqual([]);
});

test("files are written through one layer, whose calls tests fail one by one", () => {
  const call =
    /\b(?:write|append|copy|rename|unlink|link|symlink|truncate|ftruncate|mkdir|mkdtemp|rm|rmdir|cp|chmod|utimes)(?:File|v)?Sync\(|createWriteStream\(|fs\/promises|\.promises\b/;
  // a folder of its own in the system's temporary one, which goes with the process
  const apart = ["src/files/calls.ts", "src/onnx/calibrate/node.ts"];
  const found = sources.filter((p) => call.test(read(p)));
  expect(found).toEqual(apart);
});

test.each(generated().map((g) => [g.path, g]))("%s is fresh (npm run generate)", (_, { path, text }) => {
  expect(read(path)).toBe(text);
});
