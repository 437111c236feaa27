// The integer functions of a model (domain `lowbit.integer`), as model-local functions whose bodies are standard ONNX
// operators on integers: any runtime runs them, and ours knows them by name and body and has kernels for them. All
// arithmetic is that of src/quantize/integer, in int64.
import { create } from "@bufbuild/protobuf";
import type { FunctionProto, NodeProto } from "../file/gen/onnx_pb.ts";
import {
  AttributeProtoSchema,
  AttributeProto_AttributeType as A,
  FunctionProtoSchema,
  NodeProtoSchema,
  OperatorSetIdProtoSchema,
  TensorProtoSchema,
  TensorProto_DataType as T,
} from "../file/gen/onnx_pb.ts";

export const INTEGER_DOMAIN = "lowbit.integer";

/** The bits that normalisations drop of products with the reciprocal root: NORM_SHIFT of src/quantize/integer. */
export const NORM_SHIFT = 8;
const BIAS = 1n << 62n;
/** The roots of sums of squares below 4^31. */
const ROOT_BITS = 31;
/** Newton's steps from less than twice the root: 1, 1/4, 1/40 ... of it too much; the fifth is below one. */
const ROOT_STEPS = 5;

/** Writes the body of a function. */
class Body {
  readonly nodes: NodeProto[] = [];
  #made = 0;

  op(opType: string, input: readonly string[], attributes: Readonly<Record<string, number | string>> = {}): string {
    const out = `v${this.#made++}`;
    const attribute = Object.entries(attributes).map(([name, value]) =>
      typeof value === "string"
        ? create(AttributeProtoSchema, { name, s: new TextEncoder().encode(value), type: A.STRING })
        : create(AttributeProtoSchema, { name, i: BigInt(value), type: A.INT }),
    );
    this.nodes.push(create(NodeProtoSchema, { opType, input: [...input], output: [out], name: `${out}/${opType}`, attribute }));
    return out;
  }

  /** A constant, scalar unless dims are given. */
  constant(values: readonly bigint[], dims: readonly number[] = []): string {
    return this.#constant(T.INT64, dims, new Uint8Array(BigInt64Array.from(values).buffer));
  }

  byte(value: number): string {
    return this.#constant(T.UINT8, [], Uint8Array.of(value));
  }

  #constant(dataType: T, dims: readonly number[], rawData: Uint8Array): string {
    const out = `v${this.#made++}`;
    const t = create(TensorProtoSchema, { dataType, dims: dims.map(BigInt), rawData });
    const attribute = [create(AttributeProtoSchema, { name: "value", t, type: A.TENSOR })];
    this.nodes.push(create(NodeProtoSchema, { opType: "Constant", output: [out], name: `${out}/Constant`, attribute }));
    return out;
  }

  int(value: number | bigint): string {
    return this.constant([BigInt(value)]);
  }

  cast(x: string, to: T): string {
    return this.op("Cast", [x], { to });
  }

  /** v >> t of non-negative int64. */
  right(v: string, t: string): string {
    return this.cast(this.op("BitShift", [this.cast(v, T.UINT64), this.cast(t, T.UINT64)], { direction: "RIGHT" }), T.INT64);
  }

  left(v: string, t: string): string {
    return this.cast(this.op("BitShift", [this.cast(v, T.UINT64), this.cast(t, T.UINT64)], { direction: "LEFT" }), T.INT64);
  }

  /** floor(v / 2^t) of int64 within 2^62: shifts are of unsigned numbers, so it is moved up and back. */
  floorShift(v: string, t: string): string {
    const bias = this.int(BIAS);
    return this.op("Sub", [this.right(this.op("Add", [v, bias]), t), this.right(bias, t)]);
  }

  /** floor((v + 2^(t - 1)) / 2^t), clipped. */
  scaled(v: string, [t, low, high]: readonly string[]): string {
    const half = this.left(this.int(1), this.op("Sub", [t, this.int(1)]));
    return this.op("Clip", [this.floorShift(this.op("Add", [v, half]), t), low, high]);
  }

  wide(x: string): string {
    return this.cast(x, T.INT64);
  }

  /** floor(sqrt(v)) of int64 from 1. */
  root(v: string): string {
    const powers = Array.from({ length: ROOT_BITS + 1 }, (_, i) => 1n << BigInt(i));
    const squares = this.constant(
      powers.slice(0, ROOT_BITS).map((p) => p * p),
      [ROOT_BITS],
    );
    const above = this.cast(this.op("GreaterOrEqual", [v, squares]), T.INT64);
    const bits = this.op("ReduceSum", [above, this.constant([-1n], [1])], { keepdims: 1 });
    let root = this.op("Gather", [this.constant(powers, [powers.length]), bits], { axis: 0 });
    const two = this.int(2);
    for (let i = 0; i < ROOT_STEPS; i++)
      root = this.op("Min", [root, this.op("Div", [this.op("Add", [root, this.op("Div", [v, root])]), two])]);
    return root;
  }
}

type Write = (b: Body, inputs: readonly string[]) => string[];

/**
 * What a function gives: int32 codes, or 8-bit ones for the next product. Those are uint8 with the zero point 128, as
 * weights are: onnxruntime multiplies two uint8 exactly, and a uint8 or int8 with an int8 in sums of 16 bits that
 * saturate on processors without VNNI.
 */
const RESULTS: ReadonlyMap<string, T> = new Map([
  ["", T.INT32],
  ["Uint8", T.UINT8],
]);

const LIMITS = ["shift", "low", "high"];

const requantized = (b: Body, x: string, multiplier: string, limits: readonly string[]): string =>
  b.scaled(b.op("Mul", [b.wide(x), multiplier]), limits);

const normalized =
  (isLayer: boolean): Write =>
  (b, [x, epsilon, multiplier, bias, ...limits]) => {
    const last = b.constant([-1n], [1]);
    let y = b.wide(x);
    if (isLayer) {
      const n = b.op("Gather", [b.op("Shape", [x]), b.int(-1)], { axis: 0 });
      const twice = b.op("Mul", [n, b.int(2)]);
      const sum = b.op("ReduceSum", [y, last], { keepdims: 1 });
      // a floor of what may be negative: rows of 2^16 codes of 2^17, moved up by a multiple of 2 n and back
      const up = b.int(1n << 40n);
      const mean = b.op("Div", [b.op("Add", [b.op("Add", [b.op("Mul", [sum, b.int(2)]), n]), b.op("Mul", [up, twice])]), twice]);
      y = b.op("Sub", [y, b.op("Sub", [mean, up])]);
    }
    const squares = b.op("Add", [b.op("ReduceSum", [b.op("Mul", [y, y]), last], { keepdims: 1 }), epsilon]);
    const root = b.root(b.op("Max", [squares, b.int(1)]));
    const factor = b.op("Div", [b.int(2 ** 31 - 1), root]);
    const z = b.floorShift(b.op("Mul", [y, factor]), b.int(NORM_SHIFT));
    return [b.scaled(b.op("Add", [b.op("Mul", [z, multiplier]), bias]), limits)];
  };

/** max - x over rows, at another scale. */
function distance(b: Body, x: string, multiplier: string, shift: string, most: string): string {
  const wide = b.wide(x);
  // opset 18 made the axes an input
  const top = b.op("ReduceMax", [wide, b.constant([-1n], [1])], { keepdims: 1 });
  return b.scaled(b.op("Mul", [b.op("Sub", [top, wide]), multiplier]), [shift, b.int(0), most]);
}

/** Functions by name, with their inputs; those of `results` come for each type of result. */
const FUNCTIONS: readonly { name: string; inputs: readonly string[]; write: Write; typed: boolean; outputs?: number }[] = [
  {
    name: "Requantize",
    inputs: ["x", "multiplier", ...LIMITS],
    typed: true,
    write: (b, [x, multiplier, ...limits]) => [requantized(b, x, multiplier, limits)],
  },
  {
    name: "Linear",
    inputs: ["x", "weight", "bias", "multiplier", ...LIMITS],
    typed: true,
    write: (b, [x, w, bias, multiplier, ...limits]) => [
      requantized(b, b.op("Add", [b.op("MatMulInteger", [x, w, b.byte(128), b.byte(128)]), bias]), multiplier, limits),
    ],
  },
  {
    name: "Product",
    inputs: ["a", "b", "multiplier", ...LIMITS],
    typed: true,
    write: (b, [a, c, multiplier, ...limits]) => [
      requantized(b, b.op("MatMulInteger", [a, c, b.byte(128), b.byte(128)]), multiplier, limits),
    ],
  },
  {
    name: "Add",
    inputs: ["a", "a_multiplier", "b", "b_multiplier", ...LIMITS],
    typed: true,
    write: (b, [a, ma, c, mc, ...limits]) => [b.scaled(b.op("Add", [b.op("Mul", [b.wide(a), ma]), b.op("Mul", [b.wide(c), mc])]), limits)],
  },
  {
    name: "Multiply",
    inputs: ["a", "b", "multiplier", ...LIMITS],
    typed: true,
    write: (b, [a, c, multiplier, ...limits]) => [b.scaled(b.op("Mul", [b.op("Mul", [b.wide(a), b.wide(c)]), multiplier]), limits)],
  },
  { name: "LayerNorm", inputs: ["x", "epsilon", "multiplier", "bias", ...LIMITS], typed: true, write: normalized(true) },
  { name: "RmsNorm", inputs: ["x", "epsilon", "multiplier", "bias", ...LIMITS], typed: true, write: normalized(false) },
  {
    // table[clip(x multiplier / 2^shift) + half of the table]
    name: "Lookup",
    inputs: ["x", "multiplier", ...LIMITS, "table"],
    typed: false,
    write: (b, [x, multiplier, shift, low, high, table]) => [
      b.op("Gather", [table, b.op("Sub", [requantized(b, x, multiplier, [shift, low, high]), low])], { axis: 0 }),
    ],
  },
  {
    // e^(x - max) of rows from a table of distances, as uint8; and the sum of a row
    name: "Exp",
    inputs: ["x", "multiplier", "shift", "most", "table"],
    typed: false,
    outputs: 2,
    write: (b, [x, multiplier, shift, most, table]) => {
      const e = b.op("Gather", [table, distance(b, x, multiplier, shift, most)], { axis: 0 });
      return [e, b.op("ReduceSum", [b.wide(e), b.constant([-1n], [1])], { keepdims: 1 })];
    },
  },
  {
    // Shiftmax of I-ViT, as uint8 codes of 1 / 256
    name: "Shiftmax",
    inputs: ["x", "multiplier", "shift", "unit"],
    typed: false,
    write: (b, [x, multiplier, shift, unit]) => {
      const one = b.int(1);
      const d = distance(b, x, multiplier, shift, b.op("Mul", [unit, b.int(16)]));
      const half = b.right(b.op("Add", [d, one]), one);
      const sixteenth = b.right(b.op("Add", [d, b.int(15)]), b.int(4));
      const p = b.op("Min", [b.op("Sub", [b.op("Add", [d, half]), sixteenth]), b.op("Mul", [unit, b.int(15)])]);
      const q = b.op("Div", [p, unit]);
      const rest = b.op("Sub", [b.op("Mul", [unit, b.int(2)]), b.op("Sub", [p, b.op("Mul", [q, unit])])]);
      const e = b.right(b.left(rest, b.int(15)), b.op("Add", [q, one]));
      const sum = b.op("ReduceSum", [e, b.constant([-1n], [1])], { keepdims: 1 });
      const code = b.op("Div", [b.left(e, b.int(8)), sum]);
      return [b.cast(b.op("Min", [code, b.int(255)]), T.UINT8)];
    },
  },
  {
    // codes of Shiftmax, values
    name: "Weigh",
    inputs: ["p", "b", "multiplier", ...LIMITS],
    typed: true,
    write: (b, [p, values, multiplier, ...limits]) => [
      requantized(b, b.op("MatMulInteger", [p, values, b.byte(0), b.byte(128)]), multiplier, limits),
    ],
  },
  {
    // codes of e, their sums, values: the average that softmax weighs them to
    name: "Attend",
    inputs: ["e", "sum", "b", "multiplier", ...LIMITS],
    typed: true,
    write: (b, [e, sum, values, multiplier, ...limits]) => [
      requantized(b, b.op("MatMulInteger", [e, values, b.byte(0), b.byte(128)]), b.op("Div", [multiplier, sum]), limits),
    ],
  },
];

/** The functions for a model of this opset (18 or later), by name. */
export function integerFunctions(opset: number): ReadonlyMap<string, FunctionProto> {
  const made = new Map<string, FunctionProto>();
  for (const { name, inputs, write, typed, outputs = 1 } of FUNCTIONS) {
    for (const [suffix, type] of typed ? RESULTS : [["", undefined] as const]) {
      const b = new Body();
      const results = write(b, inputs);
      const output = Array.from({ length: outputs }, (_, i) => (i === 0 ? "y" : `y${i}`));
      results.forEach((value, i) => {
        const moved = type === T.UINT8 ? b.op("Add", [value, b.int(128)]) : value;
        const last = type === undefined ? b.op("Identity", [value]) : b.cast(moved, type);
        b.nodes.at(-1)!.output[0] = output[i];
        b.nodes.at(-1)!.name = `${last}/${output[i]}`;
      });
      made.set(
        `${name}${suffix}`,
        create(FunctionProtoSchema, {
          name: `${name}${suffix}`,
          domain: INTEGER_DOMAIN,
          input: [...inputs],
          output,
          node: b.nodes,
          opsetImport: [create(OperatorSetIdProtoSchema, { domain: "", version: BigInt(opset) })],
        }),
      );
    }
  }
  return made;
}
