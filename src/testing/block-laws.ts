// The laws of block and opaque formats: what quantizing to nearest and reading back must keep, whatever the scale rule.
import { isA } from "../../formats/core/check.ts";
import { isLowbitError } from "../../formats/core/errors.ts";
import { dequantize, packedSizes, unpack } from "../../formats/core/packed.ts";
import type { BlockFormat, OpaqueFormat, PackedTensor } from "../../formats/core/types.ts";
import { fromBytes, toBytes } from "../tensor/container.ts";
import { quantize } from "../tensor/quantize/index.ts";
import { tensor, transpose } from "../tensor/tensor.ts";
import { arbitraryBlock, arbitraryMatrix } from "./arbitraries.ts";
import { checkLawOptions, fact, law, type Law, type LawOptions, type Violation } from "./law.ts";

interface Matrix {
  readonly data: Float32Array;
  readonly rows: number;
  readonly k: number;
}

/** Elements along k that one block covers. */
const blockSize = (format: BlockFormat | OpaqueFormat): number => {
  if (format.kind === "opaque") return format.blockSize;
  const { span } = format.scales[0];
  return typeof span === "number" ? span : typeof span === "string" ? 32 : span[1];
};

/**
 * The laws that every block or opaque format keeps under `quantize` (to nearest, the format's own rules).
 * @throws TypeError for a scalar format
 * @example for (const { name, check } of blockLaws(mxfp4)) test(name, check)
 */
export function blockLaws(format: BlockFormat | OpaqueFormat, options: LawOptions = {}): readonly Law[] {
  if (typeof format !== "object" || format === null || (format.kind !== "block" && format.kind !== "opaque"))
    throw new TypeError(`blockLaws: expected a block or opaque format, got ${isA(format)}. Scalar formats have formatLaws.`);
  checkLawOptions("blockLaws", options);
  const size = blockSize(format);
  const runs = { runs: 40, ...options };
  const whole = format.kind === "opaque" || format.tail === "error";
  const pack = ({ data, rows, k }: Matrix): PackedTensor => quantize(tensor(data, [rows, k]), format);
  const read = (m: Matrix): Float32Array => dequantize(pack(m)) as Float32Array;
  const show = ({ data, rows, k }: Matrix): string[] => {
    const list = [...data.subarray(0, 24)].join(", ");
    return [`data      [${rows}, ${k}]: ${list}${data.length > 24 ? `, ... (${data.length} values)` : ""}`];
  };
  const expect = (facts: readonly string[], expected: string, found: string): Violation => ({ facts, expected, found });
  const over = (name: string, rule: (m: Matrix) => Violation | null) =>
    law(format, name, arbitraryMatrix(size, { whole }), show, rule, runs);
  const differ = (m: Matrix, what: string, a: ArrayLike<number>, b: ArrayLike<number>): Violation | null => {
    for (let i = 0; i < a.length; i++)
      if (a[i] !== b[i] && !(Number.isNaN(a[i]) && Number.isNaN(b[i])))
        return expect([...show(m), `${what}, index ${i}`], String(a[i]), String(b[i]));
    return a.length === b.length ? null : expect(show(m), `${a.length} values`, `${b.length} values`);
  };
  const alone =
    format.kind === "opaque" ||
    [...format.scales, ...(format.offset?.levels ?? [])].every((l) => l.span !== "tensor" && !Array.isArray(l.span));
  const hasZero = format.kind === "opaque" || format.element.limits.hasZero;
  const nonFinite = format.kind === "block" ? format.nonFinite : "error";

  const laws: Law[] = [
    over("sizes follow from format and shape", (m) => {
      const w = pack(m);
      const sizes = packedSizes(format, [m.rows, m.k]);
      for (const [what, want, got] of [
        ["codes", sizes.codes, w.codes.length],
        ["scales", sizes.scales, w.scales?.length ?? null],
        ["super scales", sizes.superScales, w.superScales?.length ?? null],
        ["offsets", sizes.offsets, w.offsets?.length ?? null],
      ] as const)
        if (want !== got) return expect([...show(m), what], `${want} bytes`, `${got} bytes`);
      return null;
    }),

    over("finite data stay finite, and no value moves by more than the largest magnitude of the tensor", (m) => {
      const y = read(m);
      const amax = m.data.reduce((a, x) => Math.max(a, Math.abs(x)), 0);
      for (let i = 0; i < y.length; i++)
        if (!(Math.abs(y[i] - m.data[i]) <= amax * (1 + 2 ** -10)))
          return expect([...show(m), `index     ${i}, value ${m.data[i]}`], `within ${amax} of it`, String(y[i]));
      return null;
    }),

    ...(hasZero
      ? [
          fact(format, "all zeros stay zeros", () => {
            const k = whole ? size : size + 1;
            const m = { data: new Float32Array(2 * k), rows: 2, k };
            const y = read(m);
            const bad = y.findIndex((v) => v !== 0);
            return bad < 0 ? null : expect(show(m), "0", String(y[bad]));
          }),
        ]
      : []),

    over("scaling data by a power of two scales the result", (m) => {
      const amax = m.data.reduce((a, x) => Math.max(a, Math.abs(x)), 0);
      const least = m.data.reduce((a, x) => (x !== 0 ? Math.min(a, Math.abs(x)) : a), Infinity);
      // Far from the ends of scale formats; float16 scales reach from 2^-14 on.
      if (amax === 0 || amax > 256 || least < 2 ** -6 || amax < 1) return null;
      const y = read(m);
      const z = read({ ...m, data: m.data.map((x) => 4 * x) });
      return differ(
        m,
        "data times 4",
        y.map((v) => 4 * v),
        z,
      );
    }),

    over("a strided view quantizes as its copy does", (m) => {
      const turned = new Float32Array(m.data.length);
      for (let r = 0; r < m.rows; r++) for (let j = 0; j < m.k; j++) turned[j * m.rows + r] = m.data[r * m.k + j];
      const view = quantize(transpose(tensor(turned, [m.k, m.rows])), format);
      return differ(m, "codes of the view", pack(m).codes, view.codes);
    }),

    ...(alone
      ? [
          over("rows do not depend on each other", (m) => {
            const y = read(m);
            for (let r = 0; r < m.rows; r++) {
              const row = { data: m.data.slice(r * m.k, (r + 1) * m.k), rows: 1, k: m.k };
              const v = differ(m, `row ${r} alone`, y.subarray(r * m.k, (r + 1) * m.k), read(row));
              if (v) return v;
            }
            return null;
          }),
        ]
      : []),

    over("saved and read back it is the same tensor", (m) => {
      const w = pack(m);
      const back = fromBytes(toBytes(w));
      if (back.format.name !== format.name) return expect(show(m), format.name, back.format.name);
      return differ(m, "saved and read back", dequantize(w) as Float32Array, dequantize(back) as Float32Array);
    }),

    law(
      format,
      nonFinite === "scale" ? "NaN and infinity make their block NaN and no other" : "NaN and infinity are refused",
      arbitraryBlock(2 * size, { nonFinite: true }),
      (data) => show({ data, rows: 1, k: data.length }),
      (data) => {
        const m = { data, rows: 1, k: data.length };
        const facts = show(m);
        if (nonFinite === "scale") {
          const y = read(m);
          for (let i = 0; i < y.length; i++) {
            const start = Math.floor(i / size) * size;
            const bad = data.subarray(start, start + size).some((x) => !Number.isFinite(x));
            if (Number.isNaN(y[i]) !== bad) return expect([...facts, `index     ${i}`], bad ? "NaN" : "a number", String(y[i]));
          }
          return null;
        }
        try {
          pack(m);
        } catch (error) {
          return isLowbitError(error) && error.code === "E_VALUE" ? null : expect(facts, "LowbitError E_VALUE", String(error));
        }
        return expect(facts, "LowbitError E_VALUE", "no error");
      },
      runs,
    ),

    fact(format, whole ? "a broken last block is refused" : "a broken last block is allowed", () => {
      const k = size + 1;
      const m = { data: Float32Array.from({ length: k }, (_, i) => i % 5), rows: 1, k };
      if (!whole) return read(m).length === k ? null : expect(show(m), `${k} values`, `${read(m).length}`);
      try {
        pack(m);
      } catch (error) {
        return isLowbitError(error) && error.code === "E_SHAPE" ? null : expect(show(m), "LowbitError E_SHAPE", String(error));
      }
      return expect(show(m), "LowbitError E_SHAPE", "no error");
    }),
  ];
  if (format.kind === "block")
    laws.push(
      over("codes are codes of the element", (m) => {
        const codes = unpack(pack(m));
        const bad = codes.findIndex((c) => c >= 2 ** format.element.bits);
        if (bad >= 0) return expect(show(m), `codes below ${2 ** format.element.bits}`, String(codes[bad]));
        return codes.length === m.rows * m.k ? null : expect(show(m), `${m.rows * m.k} codes`, String(codes.length));
      }),
      fact(format, "bits per value count codes, scales and offsets", () => {
        const [rows, k] = [64, 64 * size];
        const levels = [...format.scales, ...(format.offset?.levels ?? [])];
        const bits = format.bitsPerValue(rows, k);
        const most = format.element.bits + levels.reduce((n, l) => n + l.format.bits, 0);
        return bits > format.element.bits && bits <= most ? null : expect([], `${format.element.bits} to ${most} bits`, String(bits));
      }),
    );
  return laws;
}
