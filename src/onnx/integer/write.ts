// The integer graph of an analysed float graph, node by node: wide codes for sums, normalisations and softmax, narrow
// ones for what is multiplied (codes.ts).
import { LowbitError } from "../../../formats/core/errors.ts";
import { format as formatNamed } from "../../../formats/registry.ts";
import { dyadic, dyadicVector, integerNorm, shiftGelu } from "../../quantize/integer/index.ts";
import { quantize } from "../../tensor/quantize/index.ts";
import { tensor } from "../../tensor/tensor.ts";
import { TensorProto_DataType as T } from "../file/gen/onnx_pb.ts";
import type { OnnxModel } from "../file/model.ts";
import type { ConstantView } from "../graph/graph.ts";
import { attributesOf, CONV_ATTRIBUTES, intAttribute, operatorName, readConstant, resolveConstant } from "../graph/graph.ts";
import { readFloats } from "../file/values.ts";
import type { Analysis, Made, Need, Step } from "./analyze.ts";
import { clipTo, finite, ValueCodes, type Limits, type Magnitude } from "./codes.ts";
import type { Codes, Emitter } from "./emit.ts";
import { WIDE, ZERO } from "./emit.ts";
import { isGelu, rectifierOf, slopeOf, type Unary } from "./expressions.ts";

export interface WriteSettings {
  /** "table": tables of exact values; "shift": Shiftmax and ShiftGELU of I-ViT. */
  readonly functions: "table" | "shift";
  /** Wide codes hold this times the largest value that calibration saw. */
  readonly headroom: number;
}

/** Codes of tables: distances from a row's maximum, and values around zero. */
const DISTANCES = 4096;
const HALF_TABLE = 2048;
/** From here on e^-x is code 0 of 255. */
const EXP_RANGE = Math.log(520);
/** What a mask forbids lies this far below every other code. */
const MASK_LIMIT = 2 ** 30;
const MASK_FACTOR = 2 ** 13;
/** The scale that Shiftmax works at, and its bits. */
const SHIFT_UNIT = 16;
const SHIFTMAX_CODES = 256;

export class Writer {
  readonly #analysis: Analysis;
  readonly #needs: ReadonlyMap<string, ReadonlySet<Need>>;
  readonly #model: OnnxModel;
  readonly #settings: WriteSettings;
  readonly #e: Emitter;
  readonly #values: ValueCodes;
  readonly #moved = new Map<string, readonly string[]>();

  constructor(
    model: OnnxModel,
    analysis: Analysis,
    needs: ReadonlyMap<string, ReadonlySet<Need>>,
    magnitudes: ReadonlyMap<string, Magnitude>,
    settings: WriteSettings,
    emitter: Emitter,
  ) {
    this.#model = model;
    this.#analysis = analysis;
    this.#needs = needs;
    this.#settings = settings;
    this.#e = emitter;
    this.#values = new ValueCodes(analysis, needs, magnitudes, settings.headroom, emitter);
  }

  run(): void {
    for (const [name, made] of this.#analysis.made) if (made.kind === "input") this.#input(name);
    for (const step of this.#analysis.steps) this.#step(step);
    for (const { name } of this.#analysis.scope.graph.output) {
      if (!this.#analysis.made.has(name)) continue;
      const { name: codes, scale } = this.#values.want(name, "wide");
      this.#e.op("DequantizeLinear", [codes, this.#e.float(`${name}.scale`, scale)], name);
      // graph outputs keep their names
      const node = this.#e.nodes.at(-1)!;
      node.output[0] = name;
    }
  }

  // Nodes

  #input(name: string): void {
    if ((this.#needs.get(name)?.size ?? 0) === 0) return;
    const scale = this.#values.narrowScale(name);
    const e = this.#e;
    const codes = e.op("QuantizeLinear", [name, e.float(`${name}.scale`, scale), e.byte(ZERO)], `${name}.narrow`);
    this.#values.set(name, "narrow", { name: codes, scale });
  }

  #step({ node, out, made }: Step): void {
    if (made === null) {
      const forms = node.input.map((name) => {
        const codes = this.#values.known(name);
        return this.#analysis.made.has(name) ? (codes?.wide ?? codes?.narrow ?? this.#values.want(name, "wide")).name : name;
      });
      this.#e.copy(node, forms, node.output);
      return;
    }
    if ((this.#needs.get(out)?.size ?? 0) === 0) return;
    const e = this.#e;
    switch (made.kind) {
      case "linear":
        return this.#linear(out, made);
      case "conv":
        return this.#conv(out, made);
      case "product":
        return this.#binary(out, "Product", [this.#values.want(made.a, "narrow"), this.#values.want(made.b, "narrow")]);
      case "attend":
        return this.#attend(out, made);
      case "softmax":
        return this.#softmax(out, made.x);
      case "norm":
        return this.#norm(out, made);
      case "add":
        return this.#add(out, made);
      case "multiply":
        return this.#binary(out, "Multiply", [this.#values.want(made.a, "wide"), this.#values.want(made.b, "wide")]);
      case "where":
        return this.#where(out, made);
      case "derived":
        return this.#derived(out, made);
      case "move":
        return this.#move(out, made);
      case "integers": {
        const codes = e.op("Cast", [made.from], `${out}.wide`, [intAttribute("to", T.INT32)]);
        return void this.#values.set(out, "wide", { name: codes, scale: 1 });
      }
      default:
    }
  }

  /** A function of two values whose scales multiply. */
  #binary(out: string, name: "Product" | "Multiply", [a, b]: readonly [Codes, Codes]): void {
    const e = this.#e;
    this.#values.make(out, (suffix, scale, limits) => {
      const factor = dyadic((a.scale * b.scale) / scale);
      return e.call(`${name}${suffix}`, [a.name, b.name, e.factor(factor), ...this.#values.limits(factor.shift, limits)], out)[0];
    });
  }

  /** The weight as int8 codes by rows, a scale each. */
  #weight(rows: Float32Array, n: number): { codes: Int8Array; scales: Float32Array } {
    const packed = quantize(tensor(rows, [n, rows.length / n]), formatNamed("int8_row"));
    const { buffer, byteOffset } = packed.scales!;
    return {
      codes: new Int8Array(packed.codes.buffer, packed.codes.byteOffset, rows.length),
      scales: new Float32Array(buffer.slice(byteOffset, byteOffset + 4 * n)),
    };
  }

  #bias(bias: ConstantView | null, unit: number, scales: Float32Array): Int32Array {
    if (bias === null) return new Int32Array(scales.length);
    const values = readConstant(this.#model, bias);
    return Int32Array.from(scales, (scale, j) => clipTo(values[values.length === 1 ? 0 : j] / (unit * scale), MASK_LIMIT));
  }

  #linear(out: string, { x, weight, byRows, bias }: Extract<Made, { kind: "linear" }>): void {
    const input = this.#values.want(x, "narrow");
    const values = readConstant(this.#model, weight);
    const [n, k] = byRows ? weight.shape : [weight.shape[1], weight.shape[0]];
    const rows = byRows ? values : Float32Array.from({ length: n * k }, (_, i) => values[(i % k) * n + Math.floor(i / k)]);
    const { codes, scales } = this.#weight(rows, n);
    const columns = Uint8Array.from({ length: n * k }, (_, i) => codes[(i % n) * k + Math.floor(i / n)] + ZERO);
    const e = this.#e;
    const w = e.tensor(`${out}.weight`, T.UINT8, [k, n], columns);
    const b = e.tensor(`${out}.bias`, T.INT32, [n], this.#bias(bias, input.scale, scales));
    this.#values.make(out, (suffix, scale, limits) => {
      const factors = dyadicVector(scales.map((s) => (s * input.scale) / scale));
      return e.call(`Linear${suffix}`, [input.name, w, b, e.factors(out, factors), ...this.#values.limits(factors.shift, limits)], out)[0];
    });
  }

  #conv(out: string, { x, weight, bias, node }: Extract<Made, { kind: "conv" }>): void {
    const input = this.#values.want(x, "narrow");
    const [n, ...rest] = weight.shape;
    const { codes, scales } = this.#weight(readConstant(this.#model, weight).slice(), n);
    const e = this.#e;
    const channels = [n, ...rest.slice(1).map(() => 1)];
    const w = e.tensor(
      `${out}.weight`,
      T.UINT8,
      weight.shape,
      Uint8Array.from(codes, (code) => code + ZERO),
    );
    let sums = e.op("ConvInteger", [input.name, w, e.byte(ZERO), e.byte(ZERO)], `${out}.sums`, attributesOf(node, CONV_ATTRIBUTES));
    if (bias !== null)
      sums = e.op("Add", [sums, e.tensor(`${out}.bias`, T.INT32, channels, this.#bias(bias, input.scale, scales))], `${out}.biased`);
    this.#values.make(out, (suffix, scale, limits) => {
      const factors = dyadicVector(scales.map((s) => (s * input.scale) / scale));
      return e.call(
        `Requantize${suffix}`,
        [sums, e.factors(out, factors, channels), ...this.#values.limits(factors.shift, limits)],
        out,
      )[0];
    });
  }

  /** Codes of e^(x - max) of rows, and their sums. */
  #exp(x: string, base: string): string[] {
    const input = this.#values.want(x, "wide");
    const step = EXP_RANGE / (DISTANCES - 1);
    const factor = dyadic(input.scale / step);
    const e = this.#e;
    const table = e.tensor(
      `${base}.exp`,
      T.UINT8,
      [DISTANCES],
      Uint8Array.from({ length: DISTANCES }, (_, i) => Math.round(255 * Math.exp(-i * step))),
    );
    return e.call("Exp", [input.name, e.factor(factor), e.int(factor.shift), e.int(DISTANCES - 1), table], `${base}.e`, 2);
  }

  #shiftmax(x: string, base: string): string {
    const input = this.#values.want(x, "wide");
    const factor = dyadic(input.scale * SHIFT_UNIT);
    const e = this.#e;
    return e.call("Shiftmax", [input.name, e.factor(factor), e.int(factor.shift), e.int(SHIFT_UNIT)], `${base}.p`)[0];
  }

  #attend(out: string, { x, b }: Extract<Made, { kind: "attend" }>): void {
    const e = this.#e;
    const values = this.#values.want(b, "narrow");
    if (this.#settings.functions === "shift") {
      const p = this.#shiftmax(x, out);
      this.#values.make(out, (suffix, scale, limits) => {
        const factor = dyadic(values.scale / SHIFTMAX_CODES / scale);
        return e.call(`Weigh${suffix}`, [p, values.name, e.factor(factor), ...this.#values.limits(factor.shift, limits)], out)[0];
      });
      return;
    }
    const [codes, sum] = this.#exp(x, out);
    this.#values.make(out, (suffix, scale, limits) => {
      // divided by a sum of at least 255, the multiplier has 31 bits
      const factor = dyadic(values.scale / scale);
      const multiplier = BigInt(factor.multiplier) << 7n;
      return e.call(
        `Attend${suffix}`,
        [codes, sum, values.name, e.int(multiplier), ...this.#values.limits(factor.shift + 7, limits)],
        out,
      )[0];
    });
  }

  #softmax(out: string, x: string): void {
    const e = this.#e;
    if (this.#settings.functions === "shift") {
      const codes = e.op("Cast", [this.#shiftmax(x, out)], `${out}.wide`, [intAttribute("to", T.INT32)]);
      return void this.#values.set(out, "wide", { name: codes, scale: 1 / SHIFTMAX_CODES });
    }
    const [codes, sum] = this.#exp(x, out);
    const share = e.op("Div", [e.int(2 ** 38), sum], `${out}.share`);
    const name = e.call("Requantize", [codes, share, ...this.#values.limits(23, [0, WIDE + 1])], out)[0];
    this.#values.set(out, "wide", { name, scale: 1 / (WIDE + 1) });
  }

  #norm(out: string, { x, norm }: Extract<Made, { kind: "norm" }>): void {
    const input = this.#values.want(x, "wide");
    const vector = (of: typeof norm.gain): Float32Array | null => {
      if (of === null) return null;
      return readFloats(this.#model, resolveConstant(norm.scope, of.node.input[of.input])!.tensor).slice();
    };
    const [gain, bias] = [vector(norm.gain), vector(norm.bias)];
    if (gain === null)
      throw new LowbitError(
        "E_UNSUPPORTED",
        `value ${out}: expected a normalisation with a gain, got none. Multiply it by a constant vector.`,
      );
    const e = this.#e;
    this.#values.make(out, (suffix, scale, limits) => {
      const made = integerNorm({
        kind: norm.kind,
        gain,
        ...(bias === null ? {} : { bias }),
        epsilon: norm.epsilon,
        scale: input.scale,
        outputScale: scale,
      });
      const { multipliers, shift } = made.gain;
      const multiplier = e.ints(
        `${out}.multiplier`,
        multipliers.map((m, j) => m * (made.signs?.[j] ?? 1)),
      );
      const offset = e.ints(
        `${out}.offset`,
        Array.from(made.bias, (v) => BigInt(v) << 16n),
      );
      const name = norm.kind === "layer" ? "LayerNorm" : "RmsNorm";
      return e.call(
        `${name}${suffix}`,
        [input.name, e.int(made.epsilon), multiplier, offset, ...this.#values.limits(shift, limits)],
        out,
      )[0];
    });
  }

  #add(out: string, { a, b, sign }: Extract<Made, { kind: "add" }>): void {
    const [x, y] = [this.#values.want(a, "wide"), this.#values.want(b, "wide")];
    const e = this.#e;
    const masks = this.#analysis.masks;
    const call = (suffix: string, factors: readonly number[], limits: Limits): string => {
      const { multipliers, shift } = dyadicVector(factors);
      return e.call(
        `Add${suffix}`,
        [x.name, e.int(multipliers[0]), y.name, e.int(sign * multipliers[1]), ...this.#values.limits(shift, limits)],
        out,
      )[0];
    };
    if (sign > 0 && masks.has(a) !== masks.has(b)) {
      const scale = masks.has(b) ? x.scale : y.scale;
      const factors = [x, y].map((codes) => Math.min(MASK_FACTOR, codes.scale / scale));
      return void this.#values.set(out, "wide", { name: call("", factors, [-MASK_LIMIT, MASK_LIMIT]), scale });
    }
    this.#values.make(out, (suffix, scale, limits) => call(suffix, [x.scale / scale, y.scale / scale], limits));
  }

  #where(out: string, { node, a, b }: Extract<Made, { kind: "where" }>): void {
    const masks = this.#analysis.masks;
    const [x, y] = [this.#values.want(a, "wide"), this.#values.want(b, "wide")];
    const scale = masks.has(b) ? x.scale : masks.has(a) ? y.scale : this.#values.wideScale(out);
    const e = this.#e;
    const [p, q] = [x, y].map((codes, i) => {
      if (codes.scale === scale) return codes.name;
      const factor = dyadic(Math.min(MASK_FACTOR, codes.scale / scale));
      return e.call(
        "Requantize",
        [codes.name, e.factor(factor), ...this.#values.limits(factor.shift, [-MASK_LIMIT, MASK_LIMIT])],
        `${out}.${i}`,
      )[0];
    });
    this.#values.set(out, "wide", { name: e.op("Where", [node.input[0], p, q], `${out}.wide`), scale });
  }

  #derived(out: string, { root, f }: Extract<Made, { kind: "derived" }>): void {
    const e = this.#e;
    const slope = slopeOf(f);
    if (slope !== undefined) {
      for (const need of slope > 0 ? this.#needs.get(out)! : (["wide"] as const)) {
        const { name, scale } = this.#values.want(root, need);
        this.#values.set(out, need, { name: slope > 0 ? name : e.op("Neg", [name], `${out}.wide`), scale: scale * Math.abs(slope) });
      }
      return;
    }
    const x = this.#values.want(root, "wide");
    const rectifier = rectifierOf(f);
    if (rectifier !== undefined) {
      const from = { name: x.name, scale: x.scale * rectifier };
      return this.#values.make(out, (suffix, scale) => this.#values.requantize(from, scale, out, suffix, 0));
    }
    this.#lookup(out, root, x, f);
  }

  /** A function of one value: a table over its range, or ShiftGELU over 8-bit codes. */
  #lookup(out: string, root: string, x: Codes, f: Unary): void {
    const e = this.#e;
    const isShift = this.#settings.functions === "shift" && isGelu(f);
    const half = isShift ? ZERO : HALF_TABLE;
    const step = this.#values.magnitude(root)[isShift ? "narrow" : "full"] / (half - 1);
    const codes = Int32Array.from({ length: 2 * half }, (_, i) => i - half);
    const values = isShift
      ? Float64Array.from(shiftGelu(codes, { scale: step }), (v) => (v * step) / 128)
      : Float64Array.from(codes, (v) => f(v * step));
    const factor = dyadic(x.scale / step);
    const call = (table: string): string =>
      e.call("Lookup", [x.name, e.factor(factor), ...this.#values.limits(factor.shift, [-half, half - 1]), table], out)[0];
    const table = (need: Need, scale: number): string => this.#values.table(`${out}.table`, need, [2 * half], values, scale);
    if (this.#analysis.masks.has(out)) {
      const scale = Math.max(...Float64Array.from([f(0), f(1)], (v) => Math.abs(finite(v)))) / WIDE;
      return void this.#values.set(out, "wide", { name: call(table("wide", scale)), scale });
    }
    this.#values.make(out, (suffix, scale) => call(table(suffix === "" ? "wide" : "narrow", scale)));
  }

  #move(out: string, { node, from }: Extract<Made, { kind: "move" }>): void {
    if (from.length > 1) return this.#concat(out, { node, from });
    const [name] = from;
    const made = this.#analysis.made.get(name)!;
    if (made.kind === "constant" && operatorName(node) === "Gather") return this.#gather(out, name, made, node.input);
    for (const need of this.#needs.get(out)!) {
      const codes = this.#values.want(name, need);
      const key = `${need} ${node.output.join(" ")}`;
      let outputs = this.#moved.get(key);
      if (outputs === undefined) {
        outputs = node.output.map((output) => (output === "" ? "" : this.#e.name(`${output}.${need}`)));
        this.#e.copy(node, [codes.name, ...node.input.slice(1)], outputs);
        this.#moved.set(key, outputs);
      }
      this.#values.set(out, need, { name: outputs[node.output.indexOf(out)], scale: codes.scale });
    }
  }

  /** Rows of a table: 16-bit codes in the file. */
  #gather(out: string, name: string, { values, dims }: Extract<Made, { kind: "constant" }>, input: readonly string[]): void {
    const e = this.#e;
    let most = 0;
    for (const v of values) most = Math.max(most, Math.abs(finite(v)));
    const scale = most === 0 ? 1 : most / WIDE;
    const table = e.tensor(
      `${name}.table`,
      T.INT16,
      dims,
      Int16Array.from(values, (v) => clipTo(v / scale, WIDE)),
    );
    const node = this.#analysis.scope.producers.get(out)!;
    const rows = e.name(`${out}.rows`);
    e.copy(node, [table, ...input.slice(1)], [rows]);
    this.#values.set(out, "wide", { name: e.op("Cast", [rows], `${out}.wide`, [intAttribute("to", T.INT32)]), scale });
  }

  #concat(out: string, { node, from }: Pick<Extract<Made, { kind: "move" }>, "node" | "from">): void {
    const scale = Math.max(...from.map((name) => this.#values.want(name, "wide").scale));
    const parts = from.map((name, i) => {
      const codes = this.#values.want(name, "wide");
      return codes.scale === scale ? codes.name : this.#values.requantize(codes, scale, `${out}.${i}`, "");
    });
    const name = this.#e.name(`${out}.wide`);
    this.#e.copy(node, parts, [name]);
    this.#values.set(out, "wide", { name, scale });
  }
}
