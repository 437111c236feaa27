// Names and definitions of formats: what `format` and `defineFormat` take works, and nothing else is taken.
import type { Format, FormatDefinition, NumberFormat } from "../../../formats/index.ts";
import { LowbitError, allFormats, format } from "../../../formats/index.ts";
import { defineFormat } from "../../../formats/define/index.ts";
import { dequantize, fromBytes, quantize, tensor, toBytes } from "../../../src/index.ts";
import type { Random } from "../../helpers/random.ts";
import { normalArray, random } from "../../helpers/random.ts";
import type { FuzzTarget } from "../fuzz.ts";
import { damageJson, digest, pick } from "../fuzz.ts";

const PIECES = [
  "int",
  "uint",
  "float",
  "posit",
  "bipolar",
  "binary8p",
  "es",
  "e",
  "m",
  "b",
  "p",
  "q",
  "row",
  "tensor",
  "zp",
  "fn",
  "fnuz",
  "se",
  "uf",
  "olive",
  "dfp",
  "fixed",
  "_",
  "_",
  "_",
  "_b",
  "_row",
  "_t",
];
const WORDS = [
  "int",
  "uint",
  "float",
  "posit",
  "bipolar",
  "codebook",
  "fixed",
  "block",
  "opaque",
  "ieee",
  "fn",
  "fnuz",
  "p3109",
  "finite",
  "max",
  "mse",
  "minmax",
  "narrow",
  "full",
  "gptq",
  "short",
  "pad",
  "scale",
  "error",
  "zeroPoint",
  "min",
  "mean",
  "saturate",
  "inf",
  "nan",
  "row",
  "tensor",
];

function name(rng: Random): string {
  const known = (): string => pick(rng, allFormats).name;
  const number = (): string =>
    pick(rng, ["0", "1", "2", "3", "4", "5", "8", "16", "17", "31", "32", "33", "64", "100", "007", "4294967296", "1e3", "-1", ""]);
  switch (rng.integer(4)) {
    case 0:
      return `${known()}${pick(rng, ["_b", "_row", "_tensor", "_zp", "_b32_", "_"])}${pick(rng, [number(), known()])}${pick(rng, ["", "_zp"])}`;
    case 1:
      return known()
        .split("_")
        .map((part) => (rng.next() < 0.4 ? part.replace(/\d+/, number()) : part))
        .join("_");
    case 2:
      return Array.from({ length: 1 + rng.integer(6) }, () => pick(rng, PIECES) + (rng.next() < 0.6 ? number() : "")).join("");
    default:
      return pick(rng, [
        "constructor",
        "__proto__",
        "toString",
        "hasOwnProperty",
        "a".repeat(5000),
        "int4".repeat(2000),
        "\u0000",
        "İNT4",
        " int4",
      ]);
  }
}

/** Uses a format as a caller would; an accepted definition must work. */
function use(f: Format, rng: Random): void {
  if (f.kind === "opaque" || f.kind === "block") {
    const block = f.kind === "opaque" ? f.blockSize : 64;
    if (block > 4096) return;
    const w = quantize(tensor(normalArray(2 * block, 1 + rng.integer(100)), [2, block]), f as never);
    const values = dequantize(w);
    if (!values.every(Number.isFinite)) throw new Error(`${f.name}: infinity or NaN out of finite weights`);
    const back = dequantize(fromBytes(toBytes(w)));
    if (back.some((v, i) => !Object.is(v, values[i]))) throw new Error(`${f.name}: other values after toBytes and fromBytes`);
    return;
  }
  useScalar(f, rng);
}

function useScalar(f: NumberFormat, rng: Random): void {
  const codes = [0, 1, 2 ** f.bits - 1, 2 ** (f.bits - 1), ...Array.from({ length: 8 }, () => rng.integer(2 ** f.bits))].filter(
    (code) => code < 2 ** f.bits,
  );
  for (const code of codes) {
    const value = f.decode(code);
    // A narrow integer's lowest code decodes, and nothing encodes to it.
    if (!Number.isFinite(value) || value < f.limits.min) continue;
    // A code with bits that carry nothing is no result of encoding, but its value is.
    const again = f.decode(f.encode(value));
    if (again !== value) throw new Error(`${f.name}: code ${code} is ${value}, which encodes to ${again}`);
  }
  const { max, min } = { max: f.limits.max, min: f.limits.min };
  for (const value of [0, 1, -1, max, min, 1e300, -1e300, 5e-324]) {
    const got = f.decode(f.encode(value, { overflow: "saturate", nan: "nan" }));
    if (Number.isFinite(got) && (got > max || got < min))
      throw new Error(`${f.name}: ${value} encodes to ${got}, outside ${min} to ${max}`);
  }
}

export const registry: FuzzTarget = {
  name: "registry",
  make(rng) {
    const definition = rng.next() < 0.6 ? damageJson(rng, pick(rng, allFormats).definition, WORDS) : name(rng);
    return new TextEncoder().encode(JSON.stringify(definition) ?? "null");
  },
  async run(input) {
    let made: unknown;
    try {
      made = JSON.parse(new TextDecoder().decode(input));
    } catch (cause) {
      throw new LowbitError("E_FORMAT", "fuzz: expected JSON, got something else.", { cause });
    }
    const f = typeof made === "string" ? format(made) : defineFormat(made as FormatDefinition);
    use(f, random(digest(input)));
    return undefined;
  },
};
