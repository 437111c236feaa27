// Mutants of a source file: small faults put in on purpose (npm run mutate). All mutants of a sample are written into
// one text, each behind a switch, so that a run of the tests chooses one by its number and nothing is transformed anew
// (mutation switching, as Stryker has it).
import ts from "typescript";

export interface Mutant {
  readonly file: string;
  readonly line: number;
  readonly column: number;
  readonly start: number;
  readonly end: number;
  /** What stands there, and what a fault makes of it. */
  readonly original: string;
  readonly replacement: string;
  /** A block is emptied: a switch around statements, not an expression. */
  readonly block: boolean;
}

const OPERATORS = new Map<ts.SyntaxKind, string>([
  [ts.SyntaxKind.PlusToken, "-"],
  [ts.SyntaxKind.MinusToken, "+"],
  [ts.SyntaxKind.AsteriskToken, "/"],
  [ts.SyntaxKind.SlashToken, "*"],
  [ts.SyntaxKind.PercentToken, "*"],
  [ts.SyntaxKind.LessThanToken, "<="],
  [ts.SyntaxKind.LessThanEqualsToken, "<"],
  [ts.SyntaxKind.GreaterThanToken, ">="],
  [ts.SyntaxKind.GreaterThanEqualsToken, ">"],
  [ts.SyntaxKind.EqualsEqualsEqualsToken, "!=="],
  [ts.SyntaxKind.ExclamationEqualsEqualsToken, "==="],
  [ts.SyntaxKind.AmpersandAmpersandToken, "||"],
  [ts.SyntaxKind.BarBarToken, "&&"],
  [ts.SyntaxKind.QuestionQuestionToken, "&&"],
  [ts.SyntaxKind.LessThanLessThanToken, ">>"],
  [ts.SyntaxKind.GreaterThanGreaterThanToken, "<<"],
  [ts.SyntaxKind.GreaterThanGreaterThanGreaterThanToken, ">>"],
  [ts.SyntaxKind.AmpersandToken, "|"],
  [ts.SyntaxKind.BarToken, "&"],
]);

/** Is this literal a value that code computes with (no name of a property, path of an import or type)? */
function isValue(node: ts.Node): boolean {
  const { parent } = node;
  if (ts.isLiteralTypeNode(parent) || ts.isImportDeclaration(parent) || ts.isExportDeclaration(parent)) return false;
  if (ts.isCallExpression(parent) && parent.expression.kind === ts.SyntaxKind.ImportKeyword) return false;
  if (ts.isExternalModuleReference(parent) || ts.isExpressionStatement(parent) || ts.isModuleDeclaration(parent)) return false;
  if ((ts.isPropertyAssignment(parent) || ts.isPropertySignature(parent) || ts.isMethodDeclaration(parent)) && parent.name === node)
    return false;
  // words of an error are no behaviour that a test should hold on to
  return !inError(node);
}

function inError(node: ts.Node): boolean {
  for (let at: ts.Node | undefined = node; at !== undefined; at = at.parent) {
    if (ts.isStatement(at)) return false;
    if (ts.isNewExpression(at) && /Error$/.test(at.expression.getText())) return true;
    if (ts.isCallExpression(at) && /^(fail|refuse|unsupported|.*[eE]rror)$/.test(at.expression.getText())) return true;
  }
  return false;
}

/** What a node becomes, or undefined where it has no mutant. */
function replacementOf(node: ts.Node, text: (node: ts.Node) => string): string | undefined {
  if (ts.isBinaryExpression(node)) {
    const operator = OPERATORS.get(node.operatorToken.kind);
    if (operator === undefined) return undefined;
    // words put together are no sum
    if (node.operatorToken.kind === ts.SyntaxKind.PlusToken && /["'`]/.test(text(node))) return undefined;
    return `(${text(node.left)}) ${operator} (${text(node.right)})`;
  }
  if (ts.isPrefixUnaryExpression(node) && [ts.SyntaxKind.ExclamationToken, ts.SyntaxKind.MinusToken].includes(node.operator))
    return text(node.operand);
  if (node.parent === undefined) return undefined;
  const condition = (ts.isIfStatement(node.parent) && node.parent.expression === node) || (ts.isConditionalExpression(node.parent) && node.parent.condition === node); // prettier-ignore
  if (condition && !ts.isBinaryExpression(node)) return `!(${text(node)})`;
  if (ts.isNumericLiteral(node) && isValue(node)) return `(${text(node)} + 1)`;
  if (ts.isStringLiteral(node) && isValue(node)) return node.text === "" ? '"mutant"' : '""';
  if ((node.kind === ts.SyntaxKind.TrueKeyword || node.kind === ts.SyntaxKind.FalseKeyword) && isValue(node))
    return node.kind === ts.SyntaxKind.TrueKeyword ? "false" : "true";
  return undefined;
}

/** May the statements of this block be left out? Those of functions that give nothing back, of loops and conditions. */
function mayBeEmptied(node: ts.Node): boolean {
  if (!ts.isBlock(node) || node.statements.length === 0 || ts.isConstructorDeclaration(node.parent)) return false;
  return ts.isIfStatement(node.parent) || ts.isIterationStatement(node.parent, false) || ts.isFunctionLike(node.parent);
}

/** All mutants of a file, in order of place. */
export function mutantsOf(file: string, source: string): Mutant[] {
  const tree = ts.createSourceFile(file, source, ts.ScriptTarget.Latest, true);
  const text = (node: ts.Node): string => source.slice(node.getStart(tree), node.end);
  const found: Mutant[] = [];
  const add = (node: ts.Node, replacement: string, block: boolean): void => {
    const start = node.getStart(tree);
    const at = tree.getLineAndCharacterOfPosition(start);
    found.push({ file, line: at.line + 1, column: at.character + 1, start, end: node.end, original: text(node), replacement, block });
  };
  const walk = (node: ts.Node): void => {
    // types do not run, and words of an error are no behaviour that a test should hold on to
    if (ts.isTypeNode(node) || ts.isInterfaceDeclaration(node) || ts.isTypeAliasDeclaration(node) || ts.isThrowStatement(node)) return;
    const replacement = replacementOf(node, text);
    if (replacement !== undefined) add(node, replacement, false);
    else if (mayBeEmptied(node)) add(node, "{}", true);
    ts.forEachChild(node, walk);
  };
  walk(tree);
  return found;
}

/** The switch, once per process: which mutant is on, and which ones were reached (test/mutants/runner.ts). */
const SWITCH = `const __mutant = (globalThis.__lowbitMutant ??= {
  on: Number(process.env.LOWBIT_MUTANT ?? -1), reached: new Uint8Array(Number(process.env.LOWBIT_MUTANT_COUNT ?? 0)),
});`.replace(/\n */g, " ");

/** The file with all given mutants behind switches of their numbers. */
export function withSwitches(source: string, mutants: readonly { id: number; mutant: Mutant }[]): string {
  const edits: { at: number; order: number; text: string }[] = [];
  for (const { id, mutant } of mutants) {
    const size = mutant.end - mutant.start;
    const on = `((__mutant.reached[${id}] = 1), __mutant.on === ${id})`;
    const [open, close] = mutant.block ? [`{ if (!${on}) `, " }"] : [`(${on} ? (${mutant.replacement}) : (`, "))"];
    // of two that begin at one place the longer is outside; of two that end at one place the shorter closes first
    edits.push({ at: mutant.start, order: 1e9 - size, text: open }, { at: mutant.end, order: -1e9 + size, text: close });
  }
  edits.sort((a, b) => a.at - b.at || a.order - b.order);
  let [out, last] = ["", 0];
  for (const edit of edits) {
    out += source.slice(last, edit.at) + edit.text;
    last = edit.at;
  }
  return `${SWITCH}${out}${source.slice(last)}`;
}
