// npm run new:format NAME [--kind float|int|posit|codebook|block]: writes formats/NAME.ts, its note in
// scripts/format-notes.ts and a test with a place for the oracle, then runs the generator. What it writes compiles and
// passes but for the oracle, which only its author knows.
import { execFileSync } from "node:child_process";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { isLowbitError } from "../formats/core/errors.ts";
import { format } from "../formats/registry.ts";

/** Builder, its file, the fields to begin with, and the value of code 1 with those. */
const KINDS = {
  float: ["defineFloat", "float", ["exponentBits: 4", "mantissaBits: 3", 'specials: "finite"'], "0.001953125"],
  int: ["defineInt", "int", ["bits: 8", "signed: true"], "1"],
  posit: ["definePosit", "posit", ["bits: 8", "es: 2"], "5.960464477539063e-8"],
  codebook: ["defineCodebook", "codebook", ["values: [-1, -0.25, 0.25, 1]"], "-0.25"],
  block: ["defineBlock", "block", ["element: int4", "scales: [{ format: float16, span: 32 }]"], ""],
} as const;

export type Kind = keyof typeof KINDS;

/** The three texts that a new format starts from. */
export function scaffold(name: string, kind: Kind): { readonly source: string; readonly note: string; readonly test: string } {
  const [builder, file, fields, one] = KINDS[kind];
  // the example is run, and the comment has the text of `spec`: test/docs/formats.test.ts
  const example = kind === "block" ? `quantize(tensor(values, [rows, k]), ${name})` : `${name}.decode(0x1) // ${one}`;
  const imports = kind === "block" ? 'import { float16 } from "./float16.ts";\nimport { int4 } from "./int4.ts";\n' : "";
  return {
    source: `// ${name}: what it is, in a line.
//   the bit card; where it is specified; what is odd about it
import { ${builder} } from "./define/${file}.ts";
${imports}
/**
 * where it is specified: what it is, for editors.
 * @example ${example}
 */
export const ${name} = /* @__PURE__ */ ${builder}({
  name: "${name}",
  ${fields.join(",\n  ")},
  spec: "where it is specified",
});
`,
    note: `add("${name}", "Why it exists and where it is used.", "What to watch out for.");\n`,
    test:
      kind === "block"
        ? `// ${name} against a second reading of its definition.
import { expect, test } from "vitest";
import { ${name} } from "../../formats/index.ts";
import { dequantize, quantize, tensor } from "../../src/index.ts";

test("a block by hand", () => {
  const x = Float32Array.from({ length: 32 }, (_, i) => i - 16);
  const back = dequantize(quantize(tensor(x, [1, 32]), ${name}));
  // the values of this block, computed by hand or by the authors' code
  const want: number[] = [];
  expect([...back]).toEqual(want);
});
`
        : `// ${name} against a second reading of its definition.
import { expect, test } from "vitest";
import { ${name} } from "../../formats/index.ts";

/** The value of a code, written from the specification alone: imports nothing of the library. */
function oracle(code: number): number {
  throw new Error(\`write the oracle: the value of code \${code}\`);
}

test("every code has its value and comes back", () => {
  for (let code = 0; code < 2 ** ${name}.bits; code++) {
    expect(${name}.decode(code)).toEqual(oracle(code));
    expect(${name}.encode(oracle(code))).toBe(code);
  }
});
`,
  };
}

/** @returns why the name will not do */
export function refusal(name: string): string | undefined {
  if (!/^[a-z][a-z0-9_]*$/.test(name)) return `expected lower case letters, digits and _, got "${name}"`;
  try {
    return `"${name}" is a format already: ${format(name).spec}`;
  } catch (error) {
    if (isLowbitError(error) && error.code === "E_FORMAT_UNKNOWN") return undefined;
    throw error;
  }
}

function main(): void {
  const { positionals, values } = parseArgs({ allowPositionals: true, options: { kind: { type: "string", default: "float" } } });
  const [name] = positionals;
  const kind = values.kind as Kind;
  if (positionals.length !== 1 || !Object.hasOwn(KINDS, kind)) {
    console.error(`usage: npm run new:format -- NAME [--kind ${Object.keys(KINDS).join("|")}]`);
    process.exitCode = 2;
    return;
  }
  const root = fileURLToPath(new URL("..", import.meta.url));
  const why = refusal(name);
  const [source, test] = [join(root, "formats", `${name}.ts`), join(root, "test/formats", `${name}.test.ts`)];
  if (why !== undefined || existsSync(source) || existsSync(test)) {
    console.error(`new:format: ${why ?? `expected a new name, got "${name}", whose files exist`}. Choose another name.`);
    process.exitCode = 2;
    return;
  }
  const texts = scaffold(name, kind);
  const notes = join(root, "scripts/format-notes.ts");
  const before = readFileSync(notes, "utf8");
  const end = before.indexOf("export const noted");
  writeFileSync(source, texts.source);
  writeFileSync(test, texts.test);
  writeFileSync(notes, `${before.slice(0, end)}${texts.note}\n${before.slice(end)}`);
  execFileSync(process.execPath, ["--import", "tsx", join(dirname(fileURLToPath(import.meta.url)), "generate.ts")], {
    cwd: root,
    stdio: "inherit",
  });
  console.log(
    `written: formats/${name}.ts, test/formats/${name}.test.ts, a note in scripts/format-notes.ts. Next: the definition, its spec and\n` +
      "example, then the oracle in the test (docs/adding-a-format.md).",
  );
}

if (process.argv[1] === fileURLToPath(import.meta.url)) main();
