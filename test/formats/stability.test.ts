// What a format is does not change: its definition, every code and value, blocks as they are written and read. Files of
// packed tensors hold nothing else, so a difference here is a new format. The digests are of outputs that the oracles
// of this folder have agreed to; UPDATE_STABILITY=1 writes them anew where a change is meant.
import { expect, test } from "vitest";
import {
  allFormats,
  encodeArray,
  format,
  type BlockFormat,
  type Format,
  type NumberFormat,
  type OpaqueFormat,
} from "../../formats/index.ts";
import { dequantize, quantize, tensor } from "../../src/index.ts";
import { digest, holder, numbers, rowsOf, tried } from "../helpers/digest.ts";
import { random } from "../helpers/random.ts";

const { hold, names } = holder<Record<string, string>>("stability.json");

function scalar(f: NumberFormat): Record<string, string> {
  const count = 2 ** f.bits;
  const rng = random(5);
  const codes = count <= 65536 ? Array.from({ length: count }, (_, c) => c) : [...Array.from({ length: 2000 }, () => Math.floor(rng.next() * count)), 0, 1, count - 1, count / 2, count / 2 - 1]; // prettier-ignore
  const list = numbers(f).filter((v) => Number.isFinite(v));
  return {
    definition: digest((add) => add(f.kind, f.name, f.aliases, f.bits, f.spec, f.limits, f.access, f.fields, f.ordering ?? "", f.scaleTo ?? 0, f.defaults, f.onnx ?? 0, f.definition)), // prettier-ignore
    values: digest((add) => codes.forEach((c) => add(f.decode(c)))),
    order: digest((add) => f.order !== null && add(f.order.values, f.order.codes, f.order.boundaries)),
    encode: digest((add) => {
      for (const kind of [Float32Array, Float64Array])
        add(tried(() => encodeArray(f, kind.from(list), undefined, { overflow: "saturate" })));
    }),
  };
}

function block(f: BlockFormat): Record<string, string> {
  return {
    definition: digest((add) => add(f.name, f.aliases, f.spec, f.element.name, f.scaleRule, f.rangeRule, f.tail, f.nonFinite, f.definition, f.bitsPerValue(48, 320))), // prettier-ignore
    blocks: digest((add) => {
      for (const [rows, k] of [[3, 256], [2, 33], [1, 1]]) {
        const packed = tried(() => quantize(tensor(rowsOf(rows, k, k), [rows, k]), f));
        if (typeof packed === "string") add(packed);
        else add(packed.codes, packed.scales ?? 0, packed.superScales ?? 0, packed.offsets ?? 0, packed.recipe, dequantize(packed, { dtype: "float64" }));
      } // prettier-ignore
    }),
  };
}

function opaque(f: OpaqueFormat): Record<string, string> {
  const rng = random(11);
  const bytes = Uint8Array.from({ length: 6 * f.blockBytes }, () => rng.integer(256));
  const size = 6 * f.blockSize;
  return {
    definition: digest((add) => add(f.name, f.aliases, f.spec, f.blockSize, f.blockBytes, f.gguf ?? -1, f.definition, f.planes?.definition ?? "")), // prettier-ignore
    encode: digest((add) => add(tried(() => f.encodeBytes(rowsOf(1, 2 * f.blockSize, 3))))),
    decode: digest((add) => {
      add(f.decodeBytes(bytes));
      if (f.planes === undefined || f.readPlanes === undefined) return;
      const span = f.planes.scales[0].span as number;
      const [codes, scales, mins] = [new Uint8Array(size), new Float64Array(size / span), new Float64Array(size / span)];
      f.readPlanes(bytes, codes, scales, mins);
      add(codes, scales, mins);
    }),
  };
}

const parametric = ["int12", "uint16", "int24", "posit6_es1", "posit12_es2", "posit24_es2", "takum8", "takum12", "takum32", "lns6_f2", "lns12_f6", "binary6p3se", "binary10p5sf", "fixed8_f4", "fixed12_f8_full", "ufixed8_f8", "float_e3m2", "float_e5m7", "hifloat8", "bipolar6", "int4_b32", "uint4_b32_zp", "int8_row", "float8_e4m3fn_tensor", "nf4_b16_float16", "uint3_b24_float16_zp", "olive4_b32", "olive8_b16"]; // prettier-ignore
const list: [string, Format][] = [...allFormats.map((f): [string, Format] => [f.name, f]), ...parametric.flatMap((name): [string, Format][] => { const f = tried(() => format(name) as Format); return typeof f === "string" ? [] : [[name, f]]; })]; // prettier-ignore

test.each(list)("%s", (name, f) => {
  hold(name, f.kind === "block" ? block(f) : f.kind === "opaque" ? opaque(f) : scalar(f));
});

test("of the formats that there were, none is missing", () => {
  expect(list.map(([name]) => name)).toEqual(expect.arrayContaining([...names]));
});
