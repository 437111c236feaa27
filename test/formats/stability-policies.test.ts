// What policies make of awkward numbers, results of arithmetic, expressions that kernels are printed from, the words
// that explain a code, and what the encoders of blocks search for, of every format: digests as in stability.test.ts.
import { test } from "vitest";
import { decodeExpr, encodeExpr, exprNodes } from "../../formats/core/expr.ts";
import { allFormats, arithmetic, bitCard, encodeArray, explainCode, explainValue, valueTable } from "../../formats/index.ts";
import type { NumberFormat, OpaqueFormat, VectorOperation } from "../../formats/index.ts";
import { digest, holder, numbers, POLICIES, rowsOf, tried } from "../helpers/digest.ts";
import { awkwardBlock, random } from "../helpers/random.ts";

const { hold } = holder<Record<string, string>>("stability-policies.json");
const OPERATIONS: VectorOperation[] = ["add", "sub", "mul", "div", "fma", "sqrt", "dot"];

function scalar(f: NumberFormat): Record<string, string> {
  const count = 2 ** f.bits;
  const rng = random(5);
  const codes = count <= 256 ? Array.from({ length: count }, (_, c) => c) : [...Array.from({ length: 2000 }, () => Math.floor(rng.next() * count)), 0, 1, count - 1, count / 2, count / 2 - 1]; // prettier-ignore
  const list = numbers(f);
  const few = codes.filter((_, i) => i % Math.ceil(codes.length / 24) === 0 || i >= codes.length - 3);
  const ends = [f.limits.minPositive, f.limits.max, f.limits.min, 1]
    .filter((v) => !Number.isNaN(v))
    .map((v) => f.encode(v, { overflow: "saturate" }));
  const ops = arithmetic(f);
  const directed = [arithmetic(f, { rounding: "trunc", overflow: "saturate" }), arithmetic(f, { rounding: "ceil", nan: "max" })];
  if (f.kind === "int") directed.push(arithmetic(f, { overflow: "wrap" }));
  return {
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

function opaque(f: OpaqueFormat): Record<string, string> {
  const count = Math.max(1, Math.ceil(1024 / f.blockSize));
  const rng = random(11);
  return {
    words: digest((add) => add(bitCard(f))),
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
  };
}

test.each(allFormats.map((f) => [f.name, f] as const))("%s", (name, f) => {
  hold(name, f.kind === "block" ? { words: digest((add) => add(bitCard(f))) } : f.kind === "opaque" ? opaque(f) : scalar(f));
});
