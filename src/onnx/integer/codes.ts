// Codes of a float graph's values: the scales that their magnitudes give, wide codes (int32, kept to 16 bits) and
// narrow ones (uint8 around 128) of each value, and one form made of the other.
import { LowbitError } from "../../../formats/core/errors.ts";
import { dyadic } from "../../quantize/integer/index.ts";
import { TensorProto_DataType as T } from "../file/gen/onnx_pb.ts";
import { intAttribute } from "../graph/graph.ts";
import type { Analysis, Made, Need } from "./analyze.ts";
import type { Codes, Emitter } from "./emit.ts";
import { NARROW, WIDE, ZERO } from "./emit.ts";
import { slopeOf } from "./expressions.ts";

/** The largest magnitudes of a value: of all that was seen, and those that 8-bit codes should hold. */
export interface Magnitude {
  readonly full: number;
  readonly narrow: number;
}

/** Least and largest code. */
export type Limits = readonly [low: number, high: number];

export const finite = (v: number): number => (Number.isNaN(v) ? 0 : Math.max(-3e38, Math.min(3e38, v)));
export const clipTo = (v: number, limit: number): number => Math.max(-limit, Math.min(limit, Math.round(finite(v))));

export class ValueCodes {
  readonly #analysis: Analysis;
  readonly #needs: ReadonlyMap<string, ReadonlySet<Need>>;
  readonly #magnitudes: ReadonlyMap<string, Magnitude>;
  readonly #headroom: number;
  readonly #e: Emitter;
  readonly #codes = new Map<string, Partial<Record<Need, Codes>>>();

  /** @param headroom wide codes hold this times the largest value that calibration saw */
  constructor(
    analysis: Analysis,
    needs: ReadonlyMap<string, ReadonlySet<Need>>,
    magnitudes: ReadonlyMap<string, Magnitude>,
    headroom: number,
    emitter: Emitter,
  ) {
    this.#analysis = analysis;
    this.#needs = needs;
    this.#magnitudes = magnitudes;
    this.#headroom = headroom;
    this.#e = emitter;
  }

  // Scales

  magnitude(name: string): Magnitude {
    // moves have the numbers of their source, scaled values those of theirs
    let [at, factor] = [name, 1];
    for (let made = this.#analysis.made.get(at); !this.#magnitudes.has(at); made = this.#analysis.made.get(at)) {
      if (made?.kind === "move" && made.from.length === 1) [at] = made.from;
      else if (made?.kind === "derived" && slopeOf(made.f) !== undefined) {
        at = made.root;
        factor *= Math.abs(slopeOf(made.f)!);
      } else break;
    }
    const found = this.#magnitudes.get(at);
    if (found === undefined || !(found.full > 0)) return { full: factor, narrow: factor };
    return { full: found.full * factor, narrow: found.narrow * factor };
  }

  wideScale(name: string): number {
    return (this.magnitude(name).full * this.#headroom) / WIDE;
  }

  narrowScale(name: string): number {
    return this.magnitude(name).narrow / NARROW;
  }

  // Codes of a value

  /** The codes of a value in the forms that it has so far. */
  known(name: string): Partial<Record<Need, Codes>> | undefined {
    return this.#codes.get(name);
  }

  set(name: string, need: Need, codes: Codes): Codes {
    this.#codes.set(name, { ...this.#codes.get(name), [need]: codes });
    return codes;
  }

  /** The codes of a value in a form, made of the other one where it has only that. */
  want(name: string, need: Need): Codes {
    const known = this.#codes.get(name);
    if (known?.[need] !== undefined) return known[need];
    const made = this.#analysis.made.get(name);
    if (made?.kind === "constant") return this.set(name, need, this.#constant(name, made, need));
    if (need === "wide" && known?.narrow !== undefined) {
      const cast = this.#e.op("Cast", [known.narrow.name], `${name}.cast`, [intAttribute("to", T.INT32)]);
      const zero = this.#e.tensor(`${name}.zero`, T.INT32, [], Int32Array.of(ZERO));
      return this.set(name, need, { name: this.#e.op("Sub", [cast, zero], `${name}.wide`), scale: known.narrow.scale });
    }
    if (need === "narrow" && known?.wide !== undefined) {
      const scale = this.narrowScale(name);
      return this.set(name, need, { name: this.requantize(known.wide, scale, `${name}.narrow`, "Uint8"), scale });
    }
    throw new LowbitError("E_ONNX", `value ${name}: expected codes of it, got none. Report this model: its graph was read wrongly.`);
  }

  requantize(from: Codes, scale: number, base: string, suffix: "" | "Uint8", low?: number): string {
    const factor = dyadic(from.scale / scale);
    const limit = suffix === "" ? WIDE : NARROW;
    const e = this.#e;
    return e.call(`Requantize${suffix}`, [from.name, e.factor(factor), e.int(factor.shift), e.int(low ?? -limit), e.int(limit)], base)[0];
  }

  #constant(name: string, { values, dims }: Extract<Made, { kind: "constant" }>, need: Need): Codes {
    let most = 0;
    for (const v of values) most = Math.max(most, Math.abs(finite(v)));
    const scale = most === 0 ? 1 : most / (need === "wide" ? WIDE : NARROW);
    return { name: this.table(`${name}.${need}`, need, dims, values, scale), scale };
  }

  /** Values as a tensor of wide (int32) or narrow (uint8) codes. */
  table(base: string, need: Need, dims: readonly number[], values: ArrayLike<number>, scale: number): string {
    if (need === "wide") {
      const codes = Int32Array.from(values, (v) => clipTo(v / scale, WIDE));
      return this.#e.tensor(base, T.INT32, dims, codes);
    }
    const codes = Uint8Array.from(values, (v) => clipTo(v / scale, NARROW) + ZERO);
    return this.#e.tensor(base, T.UINT8, dims, codes);
  }

  /** Makes what readers want of a value: wide codes, or only narrow ones. */
  make(out: string, emit: (suffix: "" | "Uint8", scale: number, limits: Limits) => string): void {
    const narrow = !this.#needs.get(out)!.has("wide");
    const scale = narrow ? this.narrowScale(out) : this.wideScale(out);
    const limit = narrow ? NARROW : WIDE;
    this.set(out, narrow ? "narrow" : "wide", { name: emit(narrow ? "Uint8" : "", scale, [-limit, limit]), scale });
  }

  limits(shift: number, [low, high]: Limits): string[] {
    return [this.#e.int(shift), this.#e.int(low), this.#e.int(high)];
  }
}
