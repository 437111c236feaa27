// The laws of scalar formats. They use only the public face of a format (decode, encode, limits, order, access,
// definition), so they hold for a user's own format as for the named ones.
import * as fc from "fast-check";
import { arithmetic } from "../../formats/core/arithmetic.ts";
import { decodeArray, encodeArray } from "../../formats/core/bulk.ts";
import { packCodes, unpackCodes } from "../../formats/core/pack.ts";
import { isLowbitError } from "../../formats/core/errors.ts";
import type { EncodeOptions, NumberFormat } from "../../formats/core/types.ts";
import { defineFormat } from "../../formats/define/index.ts";
import { arbitraryCode, arbitraryValue } from "./arbitraries.ts";
import { checkLawOptions, checkScalar, fact, law, showCode, showDouble, type Law, type LawOptions, type Violation } from "./law.ts";

const SATURATE: EncodeOptions = { overflow: "saturate" };

/**
 * The laws that every scalar format keeps.
 * @example for (const { name, check } of formatLaws(defineInt({ bits: 5, signed: true }))) test(name, check)
 */
export function formatLaws(format: NumberFormat, options: LawOptions = {}): readonly Law[] {
  checkScalar("formatLaws", format);
  checkLawOptions("formatLaws", options);
  const { bits, limits } = format;
  const size = 2 ** bits;
  const small = bits <= 10;
  const everyCode = function* () {
    if (small) for (let c = 0; c < size; c++) yield c;
  };
  const produced = format.order ? new Set(format.order.codes) : null;
  const code = (c: number) => [`code      ${showCode(format, c)}`];
  const value = (x: number) => [`value     ${showDouble(x)}`];
  const both = (x: number, c: number) => [...value(x), ...code(c)];
  const overCodes = (name: string, rule: (c: number) => Violation | null) =>
    law(format, name, arbitraryCode(format), code, rule, options, everyCode);
  const overValues = (name: string, rule: (x: number) => Violation | null, specials = false) =>
    law(format, name, arbitraryValue(format, { specials }), value, rule, options);
  const same = (a: number, b: number) => Object.is(a, b) || (Number.isNaN(a) && Number.isNaN(b));
  const expect = (facts: readonly string[], expected: string, found: string): Violation => ({ facts, expected, found });
  const isTie = (x: number) => format.order === null || format.order.boundaries.includes(x);
  /** The error code that a call throws, or what it returned. */
  const outcome = (call: () => unknown): string => {
    try {
      return `returned ${String(call())}`;
    } catch (error) {
      return isLowbitError(error) ? error.code : error instanceof Error ? error.name : String(error);
    }
  };
  const must = (facts: readonly string[], expected: string, call: () => unknown): Violation | null => {
    const found = outcome(call);
    return expected.split(" or ").includes(found) ? null : expect(facts, expected, found);
  };

  const saturating = memo(() => arithmetic(format, { ...SATURATE, nan: limits.hasNaN ? "nan" : limits.hasZero ? "zero" : "max" }));

  const laws: Law[] = [
    fact(format, "a code is a whole number of its width", () => {
      for (const bad of [-1, size, 0.5, NaN, Infinity]) {
        const v = must([`code      ${bad}`], "RangeError", () => format.decode(bad));
        if (v) return v;
      }
      return null;
    }),

    fact(format, "the fields of a code add up to its width", () => {
      for (const c of [0, 1, size >>> 1, size - 1]) {
        const sum = (format.fieldsOf?.(c) ?? format.fields).reduce((n, f) => n + f.bits, 0);
        if (sum !== bits) return expect(code(c), `${bits} bits`, `${sum} bits`);
      }
      return null;
    }),

    overCodes("a decoded value encodes to its own code", (c) => {
      const v = format.decode(c);
      // Codes without a value, and those that encoding never produces (a narrow range, duplicates), need only keep
      // their value.
      if (Number.isNaN(v)) return null;
      if (!Number.isFinite(v)) {
        const back = format.encode(v, { infinity: "keep" });
        return back === c ? null : expect(code(c), `the same code`, showCode(format, back));
      }
      const back = format.encode(v, SATURATE);
      const canonical = produced === null || produced.has(c);
      if (canonical ? same(format.decode(back), v) && (back === c || produced === null) : !produced!.has(v) || same(format.decode(back), v))
        return null;
      return expect(code(c), canonical ? "the same code" : `a code of the same value`, showCode(format, back));
    }),

    overValues("encoding takes one of the two neighbouring values, on the right side of their boundary", (x) => {
      const c = format.encode(x, SATURATE);
      const v = format.decode(c);
      if (!Number.isFinite(v)) return expect(both(x, c), "a finite value when saturating", String(v));
      const low = format.decode(format.encode(x, { rounding: "floor", overflow: "saturate" }));
      const high = format.decode(format.encode(x, { rounding: "ceil", overflow: "saturate" }));
      if (v !== low && v !== high) return expect(both(x, c), `${low} or ${high}, the values around it`, String(v));
      const { order } = format;
      if (order === null || low === high || !format.defaults.rounding.startsWith("half")) return null;
      const i = order.values.indexOf(low + 0);
      if (order.values[i + 1] !== high + 0) return expect(both(x, c), `${order.values[i + 1]} next above ${low}`, String(high));
      const boundary = order.boundaries[i];
      if (x === boundary) return null;
      const right = x < boundary ? low : high;
      return v === right ? null : expect([...both(x, c), `boundary  ${boundary}`], String(right), String(v));
    }),

    overValues("directed roundings bracket the value", (x) => {
      if (x > limits.max || x < limits.min) return null;
      for (const [rounding, holds] of [
        ["floor", (v: number) => v <= x],
        ["ceil", (v: number) => v >= x],
        ["trunc", (v: number) => Math.abs(v) <= Math.abs(x)],
      ] as const) {
        // Toward zero has nowhere to go below the smallest magnitude of a format without zero.
        if (rounding === "trunc" && !limits.hasZero) continue;
        const c = format.encode(x, { rounding, overflow: "saturate" });
        const v = format.decode(c);
        if (!holds(v)) return expect(both(x, c), `rounding "${rounding}" on its side of the value`, String(v));
      }
      return null;
    }),

    overValues("rounding twice changes nothing", (x) => {
      const once = format.encode(x, SATURATE);
      const twice = format.encode(format.decode(once), SATURATE);
      return twice === once ? null : expect(both(x, once), showCode(format, once), showCode(format, twice));
    }),

    law(
      format,
      "encoding keeps order",
      fc.tuple(arbitraryValue(format), arbitraryValue(format)),
      ([x, y]) => [...value(x), ...value(y)],
      ([x, y]) => {
        const [a, b] = [Math.min(x, y), Math.max(x, y)];
        const [u, v] = [format.decode(format.encode(a, SATURATE)), format.decode(format.encode(b, SATURATE))];
        return u <= v ? null : expect([...value(a), ...value(b)], `the smaller value not above the larger`, `${u} and ${v}`);
      },
      options,
    ),

    fact(format, "the limits are its own values, and saturation stops there", () => {
      for (const [what, x, want] of [
        ["max", limits.max, limits.max],
        ["min", limits.min, limits.min],
        ["above max", Number.MAX_VALUE, limits.max],
        ["below min", -Number.MAX_VALUE, limits.min],
        ["smallest positive", limits.minPositive, limits.minPositive],
        ["smallest normal", limits.minNormal, limits.minNormal],
      ] as const) {
        if (Number.isNaN(want)) continue;
        const c = format.encode(x, SATURATE);
        if (format.decode(c) !== want) return expect([`limit     ${what}`, ...both(x, c)], String(want), String(format.decode(c)));
      }
      return null;
    }),

    overValues("a format that says it is symmetric is, but at ties", (x) => {
      if (!limits.symmetric || isTie(x) || isTie(-x)) return null;
      const [c, d] = [format.encode(x, SATURATE), format.encode(-x, SATURATE)];
      const [u, v] = [format.decode(c), format.decode(d)];
      return u === -v ? null : expect([...both(x, c), ...both(-x, d)], String(-u + 0), String(v));
    }),

    fact(format, "signed zero", () => {
      if (!limits.hasZero) return null;
      const c = format.encode(-0);
      const v = format.decode(c);
      return Object.is(v, -0) === limits.hasNegativeZero
        ? null
        : expect(both(-0, c), limits.hasNegativeZero ? "-0" : "0", Object.is(v, -0) ? "-0" : String(v));
    }),

    fact(format, "NaN and infinity follow the named policies", () => {
      const facts = value(NaN);
      if (limits.hasNaN) {
        const c = format.encode(NaN, { nan: "nan" });
        if (!Number.isNaN(format.decode(c))) return expect([...facts, ...code(c)], "NaN", String(format.decode(c)));
      }
      const inf = limits.hasInf ? format.decode(format.encode(Infinity, { infinity: "keep", overflow: "inf" })) : Infinity;
      return (
        must(facts, "E_VALUE", () => format.encode(NaN, { nan: "error" })) ??
        (limits.hasNaN ? null : must(facts, "E_UNSUPPORTED", () => format.encode(NaN, { nan: "nan" }))) ??
        (inf === Infinity ? null : expect(value(Infinity), "Infinity", String(inf)))
      );
    }),

    law(
      format,
      "arrays encode and decode as single values do",
      fc.array(arbitraryValue(format), { maxLength: 40 }),
      (xs) => [`values    ${xs.join(", ")}`],
      (xs) => {
        for (const values of [Float64Array.from(xs), Float32Array.from(xs.filter((x) => Number.isFinite(Math.fround(x))))]) {
          const got = encodeArray(format, values, undefined, SATURATE);
          for (let i = 0; i < values.length; i++) {
            const want = format.encode(values[i], SATURATE);
            if (got[i] !== want)
              return expect(
                [`array     ${values.constructor.name}, index ${i}`, ...value(values[i])],
                showCode(format, want),
                showCode(format, got[i]),
              );
          }
          const back = decodeArray(format, got, new Float64Array(got.length));
          for (let i = 0; i < got.length; i++)
            if (!same(back[i], format.decode(got[i]))) return expect(code(got[i]), String(format.decode(got[i])), String(back[i]));
        }
        return null;
      },
      options,
    ),

    law(
      format,
      "packed codes come back",
      fc.array(arbitraryCode(format), { maxLength: 40 }),
      (codes) => [`codes     ${codes.join(", ")}`],
      (codes) => {
        const bytes = packCodes(codes, bits);
        const back = [...unpackCodes(bytes, bits, codes.length)];
        if (bytes.length !== Math.ceil((codes.length * bits) / 8))
          return expect([`codes     ${codes.length}`], `${Math.ceil((codes.length * bits) / 8)} bytes`, `${bytes.length} bytes`);
        return back.every((c, i) => c === codes[i]) ? null : expect([`codes     ${codes.join(", ")}`], "the same codes", back.join(", "));
      },
      options,
    ),

    overCodes("what kernels read says the same as the values", (c) => {
      const { access } = format;
      const v = format.decode(c);
      if (access.kind !== "lattice" || !Number.isFinite(v)) return null;
      const k = v / access.unit - access.shift;
      return Number.isInteger(k) && (k + access.shift) * access.unit === v
        ? null
        : expect(code(c), `a multiple of ${access.unit} after shifting by ${access.shift}`, String(k));
    }),

    fact(format, "its definition, through JSON, defines it again", () => {
      const again = defineFormat(JSON.parse(JSON.stringify(format.definition))) as NumberFormat;
      for (let i = 0; i < Math.min(size, 1024); i++) {
        const c = size <= 1024 ? i : Math.floor((i * 2654435761) % size);
        if (!same(again.decode(c), format.decode(c))) return expect(code(c), String(format.decode(c)), String(again.decode(c)));
      }
      return again.name === format.name ? null : expect([], format.name, again.name);
    }),

    law(
      format,
      "arithmetic rounds the exact result once",
      fc.tuple(arbitraryCode(format), arbitraryCode(format)),
      ([a, b]) => [...code(a), ...code(b)],
      ([a, b]) => {
        const ops = saturating();
        const [x, y] = [format.decode(a), format.decode(b)];
        if (!Number.isFinite(x) || !Number.isFinite(y)) return null;
        const sum = ops.add(a, b);
        if (ops.add(b, a) !== sum)
          return expect(
            [...code(a), ...code(b)],
            `the same sum in either order, ${showCode(format, sum)}`,
            showCode(format, ops.add(b, a)),
          );
        // Where a double holds the exact result, the operation is an encoding of it.
        const s = x + y;
        const exactSum = s - x === y && s - y === x;
        const p = x * y;
        const exactProduct =
          Math.fround(x) === x && Math.fround(y) === y && (p === 0 ? x === 0 || y === 0 : Math.abs(p) > 1e-250 && Math.abs(p) < 1e250);
        for (const [name, holds, result, got] of [
          ["sum", exactSum, s, sum],
          ["product", exactProduct, p, ops.mul(a, b)],
          ["dot product", exactProduct, p + 0, ops.dot([a], [b])],
        ] as const) {
          if (!holds) continue;
          const want = format.encode(result, SATURATE);
          if (!same(format.decode(got), format.decode(want)) && !(format.decode(got) === 0 && format.decode(want) === 0))
            return expect([...code(a), ...code(b), `${name.padEnd(9)} ${result}`], showCode(format, want), showCode(format, got));
        }
        return null;
      },
      options,
    ),

    overCodes("next and previous undo each other", (c) => {
      const v = format.decode(c);
      if (!Number.isFinite(v) || (produced && !produced.has(c)) || v >= limits.max) return null;
      const ops = arithmetic(format);
      const up = ops.next(c);
      const back = ops.previous(up);
      if (!(format.decode(up) >= v)) return expect(code(c), "a greater value next", showCode(format, up));
      return format.decode(back) === v
        ? null
        : expect([...code(c), `next      ${showCode(format, up)}`], String(v), showCode(format, back));
    }),
  ];
  return laws;
}

function memo<T>(make: () => T): () => T {
  let made: T | undefined;
  return () => (made ??= make());
}
