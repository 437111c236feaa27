// The doc comments of what the package exports: each has one that says what an editor's reader needs, every function
// an example, and every example type-checks and runs; where a comment behind a line of it says a value, that is it.
import { cpSync, mkdirSync, mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import ts from "typescript";
import { afterAll, beforeAll, beforeEach, expect, test } from "vitest";
import * as atHand from "./at-hand.ts";
import { exported, faults, publicEntries, root, type Exported } from "./compiler.ts";

/** Examples that only type-check here, and why. */
const NOT_RUN: Readonly<Record<string, string>> = {
  webgpu: "needs a device (test/gpu)",
  createWebGpu: "needs a device (test/gpu)",
  useRuntime: "changes the runtime of the whole process",
  uninstall: "patches transformers.js (test/cli/transformers.test.ts)",
  benchModels: "takes half a minute",
  importCheckpoint: "needs a checkpoint (test/interop)",
  checkpointOf: "needs a checkpoint (test/interop)",
  placeModel: "needs a checkpoint (test/interop/onto.test.ts)",
  placeWeights: "needs a checkpoint (test/interop/onto.test.ts)",
  llamaGguf: "needs a model (test/interop)",
  readImatrix: "needs a file of llama-imatrix (test/interop/convert.test.ts)",
  loadLossless: "needs a model in bfloat16",
  mergeStatisticsFiles: "needs data of several batches (test/onnx/calibrate-file.test.ts)",
  integerOnly: "takes an encoder (test/runtime)",
  quantizeTfjsModel: "needs a model (test/tfjs)",
  loadTfjsModel: "needs a model (test/tfjs)",
};

const all = exported();
/** Named formats have tests of their own (formats.test.ts), whose examples are like each other. */
const examples = all.flatMap((symbol) =>
  symbol.tags
    .filter(({ name, text }) => name === "example" && symbol.kind !== "value" && text !== "")
    .map(({ text }) => ({ symbol, text })),
);

const HAND = join(root, "test/docs/at-hand.ts");
const places = new Map<string, string>(Object.keys(atHand).map((name) => [name, HAND]));
for (const { name, from } of all) if (!places.has(name)) places.set(name, from[0]);

/** Names that an example takes from elsewhere, with the module of each: its own entry first. */
function needs({ symbol, text }: (typeof examples)[number]): Map<string, string> {
  const file = ts.createSourceFile("example.ts", text, ts.ScriptTarget.ES2022, true);
  const used = new Set<string>();
  const declared = new Set<string>();
  const visit = (node: ts.Node): void => {
    if (ts.isIdentifier(node)) {
      const { parent } = node;
      const field =
        (ts.isPropertyAccessExpression(parent) && parent.name === node) || (ts.isPropertyAssignment(parent) && parent.name === node);
      const binding =
        ((ts.isVariableDeclaration(parent) || ts.isParameter(parent) || ts.isBindingElement(parent)) && parent.name === node) ||
        ts.isImportClause(parent) ||
        ts.isNamespaceImport(parent) ||
        ts.isImportSpecifier(parent);
      if (binding) declared.add(node.text);
      else if (!field && !(ts.isBindingElement(parent) && parent.propertyName === node)) used.add(node.text);
    }
    ts.forEachChild(node, visit);
  };
  visit(file);
  const own = new Map(all.filter(({ from }) => from.includes(symbol.from[0])).map(({ name }) => [name, symbol.from[0]]));
  return new Map(
    [...used]
      .filter((name) => !declared.has(name))
      .flatMap((name) => {
        const place = own.get(name) ?? places.get(name);
        return place === undefined ? [] : [[name, place] as const];
      }),
  );
}

test("every export has a doc comment, every function an example", () => {
  const bare = all.filter(({ doc }) => doc.trim() === "").map(({ name, from }) => `${from[0]}: ${name} has no doc comment`);
  const untold = all
    .filter(({ kind, tags }) => (kind === "function" || kind === "class") && !tags.some(({ name }) => name === "example"))
    .map(({ name, from }) => `${from[0]}: ${name} has no @example`);
  expect([...bare, ...untold]).toEqual([]);
});

test("functions that throw say so, those of arrays say their shape", () => {
  const faulty = all
    .filter(({ kind }) => kind === "function")
    .flatMap(({ name, from, doc, tags, source, signature }) => {
      const text = [doc, ...tags.map((tag) => `@${tag.name} ${tag.text}`)].join("\n");
      const throws = /\bthrow new (?:LowbitError|TypeError|RangeError)\b/.test(source) && !text.includes("@throws");
      const arrays = /\b(?:Float32Array|Float64Array|ArrayLike<number>|Int8Array|Int32Array|Tensor)\b/.test(signature);
      const shape = /\[[^\]]*\]|shape|row|column|each|all|per |as long|vector|length|values|bytes/i.test(text);
      return [
        ...(throws ? [`${from[0]}: ${name} throws without @throws`] : []),
        ...(arrays && !shape ? [`${from[0]}: ${name} says no shape`] : []),
      ];
    });
  expect(faulty).toEqual([]);
});

test("one name means one thing in all entries", () => {
  const seen = new Map<string, Exported>();
  const twice = all.filter((symbol) => {
    const other = seen.get(symbol.name);
    seen.set(symbol.name, symbol);
    return other !== undefined;
  });
  expect(twice.map(({ name, from }) => `${name} of ${from[0]} and of ${seen.get(name)!.from[0]}`)).toEqual([]);
});

test("examples type-check under strict", { timeout: 300_000 }, () => {
  const files = new Map(
    examples.map((example, i) => {
      const imports = [...needs(example)].map(([name, place]) => `import { ${name} } from "${place}";`).join(" ");
      return [join(root, `test/docs/${example.symbol.name}-${i}.example.ts`), `${imports}\n${example.text}\nexport {};`];
    }),
  );
  expect(files.size).toBeGreaterThan(200);
  expect(faults(files)).toEqual([]);
});

let folder = "";
const home = process.cwd();
beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), "lowbit-examples-"));
  await atHand.files(join(folder, "files"));
  for (const { name, source } of publicEntries) modules.set(name, (await import(join(root, source))) as Record<string, unknown>);
});
/** Each example finds the files as they were, in one folder: a runtime that works beside this process stays in it. */
beforeEach(() => {
  const own = join(folder, "own");
  mkdirSync(own, { recursive: true });
  for (const name of readdirSync(own)) rmSync(join(own, name), { recursive: true });
  cpSync(join(folder, "files"), own, { recursive: true });
  process.chdir(own);
});
afterAll(() => {
  process.chdir(home);
  rmSync(folder, { recursive: true, force: true });
});

/** The value that a comment begins with, "0x48" of "// 0x48: 1 + 1 = 2"; undefined where it is prose. */
function said(comment: string): { value: unknown } | undefined {
  const ends = [comment.length, ...[...comment.matchAll(/[:;,] /g)].map(({ index }) => index)].sort((a, b) => b - a);
  for (const end of ends) {
    const text = comment.slice(0, end).replace(/^\w+Array (?=\[)/, "");
    const { statements } = ts.createSourceFile("value.ts", `(${text})`, ts.ScriptTarget.ES2022, true);
    const [statement] = statements;
    if (statements.length !== 1 || !ts.isExpressionStatement(statement)) continue;
    const literal = (node: ts.Node): boolean =>
      ts.isNumericLiteral(node) ||
      ts.isStringLiteral(node) ||
      [ts.SyntaxKind.TrueKeyword, ts.SyntaxKind.FalseKeyword, ts.SyntaxKind.NullKeyword].includes(node.kind) ||
      (ts.isPrefixUnaryExpression(node) && literal(node.operand)) ||
      (ts.isParenthesizedExpression(node) && literal(node.expression)) ||
      (ts.isArrayLiteralExpression(node) && node.elements.every(literal));
    if (literal(statement.expression)) return { value: Function(`return (${text})`)() as unknown };
  }
  return undefined;
}

/** Typed arrays as lists. */
const plain = (value: unknown): unknown =>
  ArrayBuffer.isView(value) ? [...(value as Float64Array)] : Array.isArray(value) ? value.map(plain) : value;

/** The example as JavaScript, the value of each line that a comment says one of handed to `__says`. */
function runnable(text: string): { code: string; claims: number } {
  const file = ts.createSourceFile("example.ts", text, ts.ScriptTarget.ES2022, true);
  let code = "";
  let claims = 0;
  for (const statement of file.statements) {
    const source = statement.getText();
    const end = statement.getEnd();
    const comment = (ts.getTrailingCommentRanges(text, end) ?? []).map((c) => text.slice(c.pos + 2, c.end).trim())[0];
    const claim = comment === undefined ? undefined : said(comment);
    if (ts.isImportDeclaration(statement)) {
      const from = statement.moduleSpecifier.getText();
      const bindings = statement.importClause?.namedBindings;
      const names = bindings === undefined ? "" : ts.isNamespaceImport(bindings) ? bindings.name.text : bindings.getText();
      code += `${names === "" ? "" : `const ${names} = `}await __load(${from});\n`;
    } else if (ts.isExpressionStatement(statement) && claim !== undefined) {
      claims++;
      code += `__says(${JSON.stringify(claim.value)}, ${statement.expression.getText()}, ${JSON.stringify(source)});\n`;
    } else code += `${source}\n`;
  }
  return { code, claims };
}

const AsyncFunction = (async () => {}).constructor as new (...names: string[]) => (...values: unknown[]) => Promise<unknown>;
const load = (name: string): Promise<unknown> => {
  const entry = publicEntries.find((e) => e.name === name);
  return import(/* @vite-ignore */ entry === undefined ? name : join(root, entry.source));
};
const modules = new Map<string, Record<string, unknown>>([[HAND, atHand]]);

test.each(examples.map((example) => [example.symbol.name, example] as const))(
  "the example of %s runs",
  { timeout: 240_000 },
  async (name, example) => {
    if (name in NOT_RUN) return;
    const { code } = runnable(example.text);
    const names = [...needs(example)].filter(([used, place]) => used in modules.get(place)!);
    const js = ts.transpileModule(code, { compilerOptions: { target: ts.ScriptTarget.ES2022, module: ts.ModuleKind.ESNext } }).outputText;
    const says = (want: unknown, got: unknown, line: string): void => expect([line, plain(got)]).toEqual([line, want]);
    const log = { ...console, log: () => {}, error: () => {} };
    const given: [string, unknown][] = [
      ...names.map(([used, place]): [string, unknown] => [used, modules.get(place)![used]]),
      ["__says", says],
      ["__load", load],
      ["console", log],
    ];
    await new AsyncFunction(...given.map(([used]) => used), js)(...given.map(([, value]) => value));
  },
);
