// Chains of element-wise operators as one kernel, printed from expressions (values.ts): every operand is read once,
// every result written once, whatever the length. Operands are rows of float32 (rows.ts): an operand whose rows do not
// move is broadcast over rows, a "scalar" one has one value per row. A result may lie where an operand of the same rows
// does. Functions and their error bounds: math.ts; the rest is float32 arithmetic, one rounding per operation.
import { ModuleBuilder, type Emit, type FunctionBuilder, type Local } from "../engine/asm.ts";
import { family } from "../engine/family.ts";
import { writeWork } from "../engine/items.ts";
import { erf4, exp4, gelu4, sigmoid4, tanh4, type Math4 } from "./math.ts";
import { eachRow, eachVector, loadSome, placeWords, ROW_WORDS, rowAddress, rowJob, storeSome, type Rows } from "./rows.ts";
import { linearise, nodeKey, type ChainNode, type Value } from "./values.ts";

export interface ChainSpec {
  readonly nodes: readonly ChainNode[];
  /** By operand: `vector` has an element for each of a row, `scalar` one for the whole row. */
  readonly operands: readonly ("vector" | "scalar")[];
  /** Nodes that are written. */
  readonly outputs: readonly number[];
  readonly shared: boolean;
  /** Functions with fused multiply-add; the operations of the expression are rounded one by one all the same. */
  readonly relaxed: boolean;
}

/** Operands and results that a job's words have room for. */
export const MOST_OPERANDS = 20;

/**
 * The spec of a chain.
 * @throws RangeError for more operands and results than a job holds, or an operand that is not declared
 */
export function chainSpec(
  values: readonly Value[],
  operands: ChainSpec["operands"],
  engine: { readonly shared: boolean; readonly relaxed: boolean },
): ChainSpec {
  const { nodes, outputs } = linearise(values);
  if (operands.length + outputs.length > MOST_OPERANDS)
    throw new RangeError(`chain: expected at most ${MOST_OPERANDS} operands and results, got ${operands.length + outputs.length}.`);
  for (const [op, index] of nodes)
    if (op === "operand" && operands[index] === undefined)
      throw new RangeError(`chain: expected operands 0..${operands.length - 1}, got ${index}.`);
  return { nodes, operands, outputs, shared: engine.shared, relaxed: engine.relaxed && nodes.some(([op]) => FUNCTIONS.has(op)) };
}

/**
 * Items and arguments of a job over `rows` of `width` elements, `per` to a run. `places`: the operands, then the
 * results.
 */
export function chainJob(
  rows: number,
  width: number,
  places: readonly Rows[],
  per = rows,
): { readonly items: number; readonly args: Int32Array } {
  const { items, words } = rowJob(rows, width, per);
  return { items, args: Int32Array.of(...words, ...placeWords(places)) };
}

const FUNCTIONS = new Map<string, Math4>(Object.entries({ exp: exp4, sigmoid: sigmoid4, tanh: tanh4, erf: erf4, gelu: gelu4 }));
const INSTRUCTIONS = new Map(
  Object.entries({
    neg: "f32x4.neg",
    abs: "f32x4.abs",
    sqrt: "f32x4.sqrt",
    floor: "f32x4.floor",
    ceil: "f32x4.ceil",
    round: "f32x4.nearest",
    trunc: "f32x4.trunc",
    not: "v128.not",
    add: "f32x4.add",
    sub: "f32x4.sub",
    mul: "f32x4.mul",
    div: "f32x4.div",
    min: "f32x4.min",
    max: "f32x4.max",
    atLeast: "f32x4.pmax",
    atMost: "f32x4.pmin",
    eq: "f32x4.eq",
    ne: "f32x4.ne",
    lt: "f32x4.lt",
    le: "f32x4.le",
    gt: "f32x4.gt",
    ge: "f32x4.ge",
    and: "v128.and",
    or: "v128.or",
  }),
);

/** Prints the nodes once, for four elements; returns where each node's value is. */
function printNodes(f: FunctionBuilder, { nodes, relaxed }: ChainSpec, operands: readonly Local[]): Local[] {
  const values: Local[] = [];
  for (const [op, ...numbers] of nodes) {
    if (op === "operand") values.push(operands[numbers[0]]);
    else if (op === "const") values.push(f.constantF32(numbers[0]));
    else {
      const args = numbers.map((i) => values[i]);
      const made = FUNCTIONS.get(op);
      let value: Emit;
      if (made !== undefined) value = made(f, args[0], relaxed);
      else if (op === "number") value = f.op("v128.and", args[0], f.constantF32(1));
      else if (op === "select") value = f.op("v128.bitselect", args[1], args[2], args[0]);
      else value = f.op(INSTRUCTIONS.get(op)!, ...args);
      const into = f.local("v128");
      f.set(into, value);
      values.push(into);
    }
  }
  return values;
}

/** A module whose `work` evaluates a chain; its arguments are `chainJob`'s. */
export function chainModule(spec: ChainSpec): Uint8Array<ArrayBuffer> {
  const { nodes, operands, outputs } = spec;
  const m = new ModuleBuilder({ shared: spec.shared });
  const places = operands.length + outputs.length;
  const row = m.func(null, ["i32", ...Array.from({ length: places }, () => "i32" as const)], [], (f) => {
    const width = f.param(0);
    const place = f.local("i32");
    const scalars = operands.map((kind) => (kind === "scalar" ? f.local("v128") : undefined));
    scalars.forEach((value, i) => value !== undefined && f.set(value, f.load("v128.load32_splat", f.param(1 + i))));
    // functions are long chains of their own results: four at a time take .8 of the time of one after the other
    const turns = nodes.some(([op]) => FUNCTIONS.has(op)) ? 4 : nodes.length <= 8 ? 2 : 1;
    eachVector(
      f,
      width,
      place,
      turns,
      (turn, tail) => {
        const address = (i: number): Emit => f.op("i32.add", f.param(1 + i), place);
        const inputs = scalars.map((scalar, i) => {
          if (scalar !== undefined) return scalar;
          const value = f.local("v128");
          if (tail === null) f.set(value, f.load("v128.load", address(i), 16 * turn));
          else loadSome(f, value, address(i), tail, f.constant32(0));
          return value;
        });
        const values = printNodes(f, spec, inputs);
        outputs.forEach((node, i) => {
          const at = address(operands.length + i);
          if (tail === null) f.store("v128.store", at, 16 * turn, values[node]);
          else storeSome(f, at, tail, values[node]);
        });
      },
      true,
    );
  });
  writeWork(m, (f, args) => (item) => {
    eachRow(f, args, item, (run, within) => {
      const addresses = Array.from({ length: places }, (_, i) => rowAddress(f, args, ROW_WORDS.length, i, run, within));
      f.run(f.call(row, f.load("i32.load", args), ...addresses));
    });
  });
  return m.bytes();
}

export const chain = family(
  "chain",
  chainModule,
  ({ nodes, operands, outputs, shared, relaxed }) =>
    `${nodes.map(nodeKey).join(";")} ${operands.join()} ${outputs.join()} ${shared} ${relaxed}`,
);
