// What a format is does not change: its definition, every code and value, what each policy makes of awkward numbers,
// results of arithmetic, blocks as they are written and read. Files of packed tensors hold nothing else, so a
// difference here is a new format. The digests are of outputs that the oracles of this folder have agreed to;
// UPDATE_STABILITY=1 writes them anew where a change is meant.
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { afterAll, expect, test } from "vitest";
import { allFormats, arithmetic, bitCard, encodeArray, explainCode, explainValue, format, valueTable } from "../../formats/index.ts"; // prettier-ignore
import { decodeExpr, encodeExpr, exprNodes } from "../../formats/core/expr.ts";
import type { BlockFormat, Format, NumberFormat, OpaqueFormat, VectorOperation } from "../../formats/index.ts";
import { dequantize, quantize, tensor } from "../../src/index.ts";
import { digest, numbers, POLICIES, tried } from "../helpers/digest.ts";
import { awkwardBlock, random } from "../helpers/random.ts";

const path = new URL("../fixtures/formats/stability.json", import.meta.url);
const update = process.env.UPDATE_STABILITY === "1";
const known = existsSync(path) ? (JSON.parse(readFileSync(path, "utf8")) as Record<string, Record<string, string>>) : {};
const made: Record<string, Record<string, string>> = {};
afterAll(() => {
  if (update) writeFileSync(path, `${JSON.stringify(made, null, 1)}\n`);
});

const OPERATIONS: VectorOperation[] = ["add", "sub", "mul", "div", "fma", "sqrt", "dot"];

function scalar(f: NumberFormat): Record<string, string> {
  const count = 2 ** f.bits;
  const rng = random(5);
  const codes = count <= 65536 ? Array.from({ length: count }, (_, c) => c) : [...Array.from({ length: 2000 }, () => Math.floor(rng.next() * count)), 0, 1, count - 1, count / 2, count / 2 - 1]; // prettier-ignore
  const list = numbers(f);
  const few = codes.filter((_, i) => i % Math.ceil(codes.length / 24) === 0 || i >= codes.length - 3);
  const ends = [f.limits.minPositive, f.limits.max, f.limits.min, 1]
    .filter((v) => !Number.isNaN(v))
    .map((v) => f.encode(v, { overflow: "saturate" }));
  const ops = arithmetic(f);
  const directed = [arithmetic(f, { rounding: "trunc", overflow: "saturate" }), arithmetic(f, { rounding: "ceil", nan: "max" })];
  if (f.kind === "int") directed.push(arithmetic(f, { overflow: "wrap" }));
  return {
    definition: digest((add) => add(f.kind, f.name, f.aliases, f.bits, f.spec, f.limits, f.access, f.fields, f.ordering ?? "", f.scaleTo ?? 0, f.defaults, f.onnx ?? 0, f.definition)), // prettier-ignore
    values: digest((add) => codes.forEach((c) => add(f.decode(c)))),
    order: digest((add) => f.order !== null && add(f.order.values, f.order.codes, f.order.boundaries)),
    encode: digest((add) => {
      for (const options of POLICIES) {
        for (const x of list) add(tried(() => f.encode(x, options)));
        for (const kind of [Float32Array, Float64Array]) add(tried(() => encodeArray(f, kind.from(list.filter((v) => Number.isFinite(v))), undefined, options)), tried(() => encodeArray(f, kind.of(1, NaN, Infinity, -Infinity, -0, 3e38), undefined, options))); // prettier-ignore
      }
    }),
    arithmetic: digest((add) => {
      for (const op of OPERATIONS) for (const other of directed) add(tried(() => [...other.vectors(op, { count: 40, seed: 5 })]));
      // sums of many products of the ends, where a plain sum would no longer be exact
      for (const n of [2, 17, 300]) for (const a of ends) for (const b of ends) add(tried(() => ops.dot(new Array(n).fill(a), Array.from({ length: n }, (_, i) => (i === n >> 1 ? ends[0] : b))))); // prettier-ignore
      for (const op of OPERATIONS) add(tried(() => [...ops.vectors(op, { count: 120, seed: 3, length: 3 })]));
      for (const a of few) for (const b of few) add(ops.compare(a, b), ops.totalOrder(a, b));
      for (const a of few)
        add(
          tried(() => ops.neg(a)),
          tried(() => ops.abs(a)),
          tried(() => ops.next(a)),
          tried(() => ops.previous(a)),
        );
    }),
    expressions: digest((add) => {
      for (const e of [decodeExpr(f), ...[POLICIES[0], POLICIES[8], POLICIES[11]].map((options) => { const x = tried(() => encodeExpr(f, options)); return typeof x === "string" ? null : x; })]) {
        if (e === null) continue;
        const nodes = exprNodes(e);
        for (const { op, type, args, value, table } of nodes) add(op, type, args.map((a) => nodes.indexOf(a)), value ?? "none", table ?? "none");
      } // prettier-ignore
    }),
    words: digest((add) => {
      add(bitCard(f));
      for (const c of few) add(explainCode(f, c));
      for (const x of list.filter((_, i) => i % 9 === 0)) for (const options of [POLICIES[0], POLICIES[3], POLICIES[11], POLICIES[14]]) add(tried(() => explainValue(f, x, options))); // prettier-ignore
      if (f.bits <= 8) for (const kind of ["csv", "json", "c", "readmemh"] as const) add(valueTable(f, kind));
    }),
  };
}

/** Rows of blocks of every kind. */
function rowsOf(rows: number, k: number, seed: number): Float32Array {
  const rng = random(seed);
  const x = new Float32Array(rows * k);
  for (let at = 0, kind = seed; at < x.length; at += 16, kind++) x.set(awkwardBlock(rng, 16, kind).subarray(0, x.length - at), at);
  return x;
}

function block(f: BlockFormat): Record<string, string> {
  return {
    definition: digest((add) => add(f.name, f.aliases, f.spec, f.element.name, f.scaleRule, f.rangeRule, f.tail, f.nonFinite, f.definition, f.bitsPerValue(48, 320), bitCard(f))), // prettier-ignore
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
  const count = Math.max(1, Math.ceil(1024 / f.blockSize));
  const rng = random(11);
  const bytes = Uint8Array.from({ length: 6 * f.blockBytes }, () => rng.integer(256));
  const size = 6 * f.blockSize;
  return {
    definition: digest((add) => add(f.name, f.aliases, f.spec, f.blockSize, f.blockBytes, f.gguf ?? -1, f.definition, f.planes?.definition ?? "", bitCard(f))), // prettier-ignore
    encode: digest((add) => {
      for (const seed of [1, 2]) {
        const x = rowsOf(1, count * f.blockSize, seed);
        const importance = Float32Array.from(x, (_, i) => 1 + ((i * 7) % 13));
        add(
          tried(() => f.encodeBytes(x)),
          tried(() => f.encodeBytes(x, importance)),
        );
      }
      // whole blocks of one kind: zeros, one value, one sign, an outlier, next to nothing
      for (let kind = 0; kind < 12; kind++) {
        const x = awkwardBlock(rng, f.blockSize, kind);
        add(
          tried(() => f.encodeBytes(x)),
          tried(() => f.encodeBytes(x, kind % 2 === 0 ? x.map((_, i) => (i % 5 === 0 ? 0 : 1)) : x.map(Math.abs))),
        );
      }
    }),
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
  made[name] = f.kind === "block" ? block(f) : f.kind === "opaque" ? opaque(f) : scalar(f);
  if (!update) expect(made[name]).toEqual(known[name]);
});

test("of the formats that there were, none is missing", () => {
  if (!update) expect(list.map(([name]) => name)).toEqual(expect.arrayContaining(Object.keys(known)));
});
