// What the samples of the documentation are checked with: the compiler as a strict user has it, against the sources
// that the package's entries are made of. Files are given as text, so that none is written.
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import ts from "typescript";
import { entries } from "../../scripts/generate.ts";

export const root = fileURLToPath(new URL("../..", import.meta.url));

/** `lowbit`, `lowbit/formats`, ... without the named formats, with the source of each. */
export const publicEntries = entries()
  .filter(({ format }) => !format)
  .map(({ source, out }) => ({ name: out === "index" ? "lowbit" : `lowbit/${out.replace(/\/index$/, "")}`, source }));

const options: ts.CompilerOptions = {
  strict: true,
  noEmit: true,
  target: ts.ScriptTarget.ES2022,
  lib: ["lib.es2023.d.ts", "lib.esnext.disposable.d.ts"],
  module: ts.ModuleKind.ESNext,
  moduleResolution: ts.ModuleResolutionKind.Bundler,
  allowImportingTsExtensions: true,
  // The sources themselves are checked elsewhere, with Node's types.
  types: ["node", "@webgpu/types"],
  skipLibCheck: true,
  baseUrl: root,
  paths: Object.fromEntries(
    entries().map(({ source, out }) => [out === "index" ? "lowbit" : `lowbit/${out.replace(/\/index$/, "")}`, [source]]),
  ),
};

const parsed = new Map<string, ts.SourceFile | undefined>();

/** A program of files, those of `texts` by their text; sources are parsed once for all programs. */
export function program(names: readonly string[], texts: ReadonlyMap<string, string> = new Map()): ts.Program {
  const host = ts.createCompilerHost(options);
  const { readFile, fileExists, getSourceFile } = host;
  host.readFile = (path) => texts.get(path) ?? readFile(path);
  host.fileExists = (path) => texts.has(path) || fileExists(path);
  host.getSourceFile = (path, language, ...more) => {
    if (texts.has(path)) return ts.createSourceFile(path, texts.get(path)!, language, true);
    if (!parsed.has(path)) parsed.set(path, getSourceFile(path, language, ...more));
    return parsed.get(path);
  };
  return ts.createProgram([...names], options, host);
}

/** What the compiler says against files given as text, a line each. */
export function faults(texts: ReadonlyMap<string, string>): string[] {
  const checked = program([...texts.keys()], texts);
  return [...texts.keys()].flatMap((path) => {
    const file = checked.getSourceFile(path)!;
    return [...checked.getSyntacticDiagnostics(file), ...checked.getSemanticDiagnostics(file)].map((d) => {
      const at = file.text.slice(d.start!, d.start! + (d.length ?? 0)).slice(0, 80);
      return `${path.slice(root.length)}: ${ts.flattenDiagnosticMessageText(d.messageText, " ")} in ${at}`;
    });
  });
}

export interface Exported {
  readonly name: string;
  /** Entries that export it, `lowbit/formats` among them. */
  readonly from: readonly string[];
  readonly kind: "function" | "class" | "value" | "type";
  readonly doc: string;
  readonly tags: readonly { readonly name: string; readonly text: string }[];
  /** Its declaration as written, without the comment. */
  readonly source: string;
  readonly signature: string;
}

/** Every name that an entry exports, once for each thing that it names. */
export function exported(): Exported[] {
  const all = program(publicEntries.map(({ source }) => join(root, source)));
  const checker = all.getTypeChecker();
  const found = new Map<ts.Symbol, { name: string; from: string[] }>();
  for (const { name, source } of publicEntries) {
    const module = checker.getSymbolAtLocation(all.getSourceFile(join(root, source))!)!;
    for (const symbol of checker.getExportsOfModule(module)) {
      const named = symbol.flags & ts.SymbolFlags.Alias ? checker.getAliasedSymbol(symbol) : symbol;
      const known = found.get(named);
      if (known) known.from.push(name);
      else found.set(named, { name: symbol.name, from: [name] });
    }
  }
  return [...found].map(([symbol, { name, from }]) => {
    const [declaration] = symbol.declarations!;
    const value = (symbol.flags & ts.SymbolFlags.Value) !== 0;
    const calls = value ? checker.getTypeOfSymbolAtLocation(symbol, declaration).getCallSignatures() : [];
    const kind = symbol.flags & ts.SymbolFlags.Class ? "class" : calls.length > 0 ? "function" : value ? "value" : "type";
    return {
      name,
      from,
      kind,
      doc: ts.displayPartsToString(symbol.getDocumentationComment(checker)),
      tags: symbol.getJsDocTags(checker).map((tag) => ({ name: tag.name, text: ts.displayPartsToString(tag.text) })),
      source: symbol.declarations!.map((d) => d.getText()).join("\n"),
      signature: calls.map((call) => checker.signatureToString(call, undefined, ts.TypeFormatFlags.NoTruncation)).join("\n"),
    };
  });
}
