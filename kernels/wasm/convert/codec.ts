// Bulk decoding (codes -> float32) and encoding (float32 -> codes) of one format, 16 values at a time, printed from its
// expressions (formats/core/expr.ts); a format that is nothing but a table of 16 values decodes by four swizzles per 16
// codes, a longer table by plain loads. Codes are bytes up to 8 bits, 16-bit words above; packing is
// kernels/wasm/convert/bits.ts, scales are kernels/wasm/convert/blocks.ts. Bit-identical to formats/core/bulk.ts.
import { family } from "../engine/family.ts";
import { input } from "../../../formats/core/expr.ts";
import { ModuleBuilder, type Emit, type FunctionBuilder, type Local } from "../engine/asm.ts";
import { exprPrinter, type ExprPlan } from "./expr.ts";

export interface CodecSpec {
  readonly direction: "decode" | "encode";
  /** 8 or 16 bits of storage per code. */
  readonly codeBits: 8 | 16;
  readonly relaxed: boolean;
  readonly shared: boolean;
}

/** Values that `decode` and `encode` take at a time. */
export const CODEC_STEP = 16;

/**
 * Module with decode(codes, out, count, tables), whose result is the OR of all codes (repeated to 32 bits), so that
 * codes which do not fit are seen; or encode(x, codes, count, tables), whose result is negative where a value was
 * refused.
 */
export function codecModule(spec: CodecSpec, plan: ExprPlan): Uint8Array<ArrayBuffer> {
  const m = new ModuleBuilder({ shared: spec.shared });
  if (spec.direction === "decode") decode(m, spec, plan);
  else encode(m, spec, plan);
  return m.bytes();
}

function decode(m: ModuleBuilder, { codeBits, relaxed }: CodecSpec, plan: ExprPlan): void {
  m.func("decode", ["i32", "i32", "i32", "i32"], ["i32"], (f) => {
    const [codes, out, count, tables] = [0, 1, 2, 3].map((i) => f.param(i));
    const root = plan.nodes[plan.nodes.length - 1];
    const table = root.op === "lookup" && root.args[0] === input ? root.table! : null;
    let step: () => void;
    if (table === null) step = expressionStep(f, codeBits, exprPrinter(f, plan, tables, relaxed), codes, out);
    else if (table.length <= 16 && codeBits === 8) step = swizzleStep(f, table, codes, out);
    else step = loadStep(f, codeBits, plan.places.get(root)!.at, codes, out, tables);
    const all = f.local("v128");
    f.while(f.op("i32.gt_s", count, f.i32(0)), () => {
      for (let at = 0; at < 2 * codeBits; at += 16) f.set(all, f.op("v128.or", all, f.load("v128.load", codes, at)));
      step();
      f.bump(codes, 2 * codeBits);
      f.bump(out, 64);
      f.bump(count, -CODEC_STEP);
    });
    f.run(anyOf(f, all));
  });
}

/** The OR of the four words of a vector. */
const anyOf = (f: FunctionBuilder, v: Local): Emit =>
  [0, 1, 2, 3].map((i): Emit => f.lane("i32x4.extract_lane", i, v)).reduce((a, b) => f.op("i32.or", a, b));

/** Codes in i32 lanes, then the expression. */
function expressionStep(f: FunctionBuilder, codeBits: 8 | 16, print: (input: Local) => Emit, codes: Local, out: Local): () => void {
  const lanes = f.local("v128");
  const loaded = codeBits === 8 ? "v128.load8x8_u" : "v128.load16x4_u";
  const octet = f.local("v128");
  return () => {
    for (let i = 0; i < 4; i++) {
      if (codeBits === 16) f.set(lanes, f.load(loaded, codes, 8 * i));
      else {
        if (i % 2 === 0) f.set(octet, f.load(loaded, codes, 4 * i));
        f.set(lanes, f.op(i % 2 === 0 ? "i32x4.extend_low_i16x8_u" : "i32x4.extend_high_i16x8_u", octet));
      }
      f.store("v128.store", out, 16 * i, print(lanes));
    }
  };
}

/** A table of at most 16 words: one swizzle per byte plane, bytes interleaved to words. */
function swizzleStep(f: FunctionBuilder, table: Uint32Array, codes: Local, out: Local): () => void {
  const planes = f.locals("v128", 4);
  const [v, low, high] = f.locals("v128", 3);
  const interleave = (from: number, size: number): number[] =>
    Array.from({ length: 16 }, (_, i) => {
      const unit = Math.floor(i / size);
      return (unit & 1) * 16 + (from + (unit >> 1)) * size + (i % size);
    });
  return () => {
    f.set(v, f.load("v128.load", codes));
    planes.forEach((plane, b) => {
      const bytes = Array.from({ length: 16 }, (_, i) => ((table[i] ?? 0) >>> (8 * b)) & 255);
      f.set(plane, f.op("i8x16.swizzle", f.constant(`plane ${b}`, f.v128(bytes)), v));
    });
    for (let half = 0; half < 2; half++) {
      f.set(low, f.shuffle(interleave(8 * half, 1), planes[0], planes[1]));
      f.set(high, f.shuffle(interleave(8 * half, 1), planes[2], planes[3]));
      for (let i = 0; i < 2; i++) f.store("v128.store", out, 32 * half + 16 * i, f.shuffle(interleave(4 * i, 2), low, high));
    }
  };
}

/** A longer table: one load per code. */
function loadStep(f: FunctionBuilder, codeBits: 8 | 16, at: number, codes: Local, out: Local, tables: Local): () => void {
  return () => {
    for (let i = 0; i < CODEC_STEP; i++) {
      const code = f.load(codeBits === 8 ? "i32.load8_u" : "i32.load16_u", codes, (i * codeBits) / 8);
      f.store("i32.store", out, 4 * i, f.load("i32.load", f.op("i32.add", tables, f.op("i32.shl", code, f.i32(2))), at));
    }
  };
}

function encode(m: ModuleBuilder, { codeBits, relaxed }: CodecSpec, plan: ExprPlan): void {
  m.func("encode", ["i32", "i32", "i32", "i32"], ["i32"], (f) => {
    const [x, codes, count, tables] = [0, 1, 2, 3].map((i) => f.param(i));
    const print = exprPrinter(f, plan, tables, relaxed);
    const [v, all] = f.locals("v128", 2);
    const quads = f.locals("v128", 4);
    f.while(f.op("i32.gt_s", count, f.i32(0)), () => {
      quads.forEach((quad, i) => {
        f.set(v, f.load("v128.load", x, 16 * i));
        f.set(quad, print(v));
        // refused values are the only words with the highest bit
        f.set(all, f.op("v128.or", all, quad));
      });
      const octet = (i: number): Emit => f.op("i16x8.narrow_i32x4_u", quads[2 * i], quads[2 * i + 1]);
      if (codeBits === 8) f.store("v128.store", codes, 0, f.op("i8x16.narrow_i16x8_u", octet(0), octet(1)));
      else for (let i = 0; i < 2; i++) f.store("v128.store", codes, 16 * i, octet(i));
      f.bump(x, 64);
      f.bump(codes, 2 * codeBits);
      f.bump(count, -CODEC_STEP);
    });
    f.run(anyOf(f, all));
  });
}

/** A plan is keyed by its text: it holds tables. */
export const codec = family(
  "codec",
  ({ plan, ...spec }: CodecSpec & { readonly plan: ExprPlan }) => codecModule(spec, plan),
  ({ plan, ...spec }) => JSON.stringify({ ...spec, expr: plan.key }),
);
