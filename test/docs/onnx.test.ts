// docs/onnx.md is run: every sample on a small model with the names that the samples use, and its tables against the
// code. docs/cli.md's command lines are in test/cli/docs.test.ts; that samples type-check is samples.test.ts.
import { mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import ts from "typescript";
import { afterAll, afterEach, beforeAll, expect, test } from "vitest";
import * as library from "../../src/index.ts";
import * as formats from "../../formats/index.ts";
import { npzBytes } from "../../src/interop/index.ts";
import * as onnx from "../../src/onnx/index.ts";
import { ALGORITHMS } from "../../src/onnx/algorithms.ts";
import { DTYPES } from "../../src/onnx/dtypes.ts";
import { OPTIONS } from "../../src/onnx/option-table.ts";
import { TARGETS } from "../../src/onnx/targets/index.ts";
import { encode, graph, model, node, raw, T, value, weights } from "../onnx/build.ts";

const root = fileURLToPath(new URL("../..", import.meta.url));
const page = readFileSync(join(root, "docs/onnx.md"), "utf8");
const folder = mkdtempSync(join(tmpdir(), "lowbit-docs-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const [D, H, V] = [128, 128, 16];
const wide = (name: string, rows: number, columns: number, seed: number) =>
  raw(
    name,
    [rows, columns],
    weights(rows * columns, seed).map((x) => 2 * x),
  );

/** Two blocks of a network with the names of an exported language model, and a head. */
function transformer(): Uint8Array {
  const initializer = [wide("head", D, V, 9)];
  const nodes = [];
  let at = "x";
  for (const i of [0, 1]) {
    const of = (name: string): string => `/layers.${i}/${name}`;
    initializer.push(
      wide(of("up"), D, H, 2 * i + 1),
      wide(of("down"), H, D, 2 * i + 2),
      raw(
        of("gain"),
        [D],
        weights(D, 8 + i).map((x) => 1 + x),
      ),
    );
    nodes.push(
      node("LayerNormalization", [at, of("gain")], [of("norm")], { axis: -1n }, of("norm")),
      node("MatMul", [of("norm"), of("up")], [of("u")], {}, of("up_proj/MatMul")),
      node("Relu", [of("u")], [of("r")], {}, of("relu")),
      node("MatMul", [of("r"), of("down")], [of("d")], {}, of("down_proj/MatMul")),
      node("Add", [at, of("d")], [of("Add_output_0")], {}, of("Add")),
    );
    at = of("Add_output_0");
  }
  nodes.push(node("MatMul", [at, "head"], ["logits"], {}, "/lm_head/MatMul"));
  const io = { input: [value("x", T.FLOAT, ["batch", D])], output: [value("logits", T.FLOAT, ["batch", V])] };
  return encode(model(graph({ ...io, initializer, node: nodes })));
}

const input = transformer();
beforeAll(async () => {
  writeFileSync(join(folder, "model.onnx"), input);
  const data = weights(48 * D, 21).map((x) => 5 * x);
  writeFileSync(join(folder, "data.npz"), await npzBytes({ x: { data, shape: [48, D] } }));
});

// each sample stands for itself
afterEach(() => {
  for (const name of readdirSync(folder).filter((file) => file.startsWith("model_"))) rmSync(join(folder, name));
});

const ENTRIES: Readonly<Record<string, unknown>> = { lowbit: library, "lowbit/formats": formats, "lowbit/onnx": onnx };

/** A sample as a function of its page's modules: files lie in the test's folder, imports become look-ups. */
function runnable(sample: string): (entries: typeof ENTRIES, given: Uint8Array) => Promise<void> {
  const imports = [...sample.matchAll(/^import (\{.*\}) from "(.*)";$/gm)].map(
    ([, names, from]) => `const ${names.replaceAll(" as ", ": ")} = entries["${from}"] as any;`,
  );
  const body = sample
    .replace(/^import .*$/gm, "")
    .replace(/"([\w./]+\.(?:onnx|npz))"/g, (_, name: string) => JSON.stringify(join(folder, name)))
    .replace(/console\.log/g, "void ");
  const at = imports.length === 0 ? "const { quantizeModel } = entries['lowbit/onnx'] as any;" : imports.join("\n");
  const source = `return (async (entries: any, input: any) => {\n${at}\n${body}\n})(entries, input);`;
  const { outputText } = ts.transpileModule(source, { compilerOptions: { target: ts.ScriptTarget.ES2022 } });
  return new Function("entries", "input", outputText) as ReturnType<typeof runnable>;
}

const samples = [...page.matchAll(/^```ts\n([^]*?)^```/gm)].map(([, code], i) => ({
  i: i + 1,
  code,
  title: code.trimStart().split("\n")[0].slice(0, 60),
}));

test("the page has samples", () => expect(samples.length).toBeGreaterThan(4));

test.each(samples)("sample $i runs: $title", async ({ code }) => {
  await runnable(code)(ENTRIES, input);
  for (const [, name] of code.matchAll(/"(model_\w+\.onnx)"/g)) {
    using made = onnx.readModel(join(folder, name));
    expect(made.proto.graph!.output.map((output) => output.name)).toContain("logits");
  }
});

/** The rows of a table by the words of their first column. */
const firstColumns = (heading: string): string[] => {
  const from = page.indexOf(heading);
  const rows = page.slice(page.indexOf("\n| --- ", from) + 1).split("\n");
  const end = rows.findIndex((row) => !row.startsWith("|"));
  return rows.slice(1, end).flatMap((row) => [...row.split("|")[1].matchAll(/`([\w-]+)`/g)].map((match) => match[1]));
};

test("the tables name all there is: dtypes, targets, passes, algorithms", () => {
  expect(firstColumns("| dtype | file |").sort()).toEqual([...DTYPES].map((row) => row.name).sort());
  expect(firstColumns("| target | formats |")).toEqual([...TARGETS.keys()]);
  const passes = OPTIONS.find((option) => option.name === "passes")!;
  for (const pass of firstColumns("| pass | what it does |")) expect(passes.accepts([pass]), pass).toBe(true);
  for (const name of ALGORITHMS) expect(page).toMatch(new RegExp(`\\b${name}\\b`));
});
