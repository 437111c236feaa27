// Operands of the integer products: how the fields of a quad (16 rows x 4 k, see gemm.ts) become the byte or i16
// vectors that a dot product takes, in registers or, for products of many rows, once per block into a panel: [quad][4
// row vectors][operands] of 16 bytes.
import type { Emit, FunctionBuilder, Local } from "../engine/asm.ts";
import { fieldLayout, type Piece } from "../products/fields.ts";
import { weightRecord, zipsPlanes, type GemmSpec } from "./gemmspec.ts";

/** Decodes fields of one quad from the weight stream. */
class Decoder {
  readonly #f: FunctionBuilder;
  readonly #spec: GemmSpec;

  constructor(f: FunctionBuilder, spec: GemmSpec) {
    this.#f = f;
    this.#spec = spec;
  }

  mask8(value: number): Local {
    return this.#f.constant8(value);
  }

  mask16(value: number): Local {
    return this.#f.constant16(value);
  }

  #piece(piece: Piece, vector: Emit): Emit {
    const f = this.#f;
    const shift = piece.from - piece.to;
    const shifted = shift === 0 ? vector : shift > 0 ? f.op("i16x8.shr_u", vector, f.i32(shift)) : f.op("i16x8.shl", vector, f.i32(-shift));
    if (piece.bits === 8) return shifted;
    return f.op("v128.and", shifted, this.mask8(((1 << piece.bits) - 1) << piece.to));
  }

  /** Field bytes of a quad: pieces, joined. */
  field(pieces: readonly Piece[], vector: (index: number) => Emit): Emit {
    return pieces.map((piece) => this.#piece(piece, vector(piece.vector))).reduce((a, b) => this.#f.op("v128.or", a, b));
  }

  /** Operand bytes of plane `pw` from field bytes. */
  operand(pw: number, field: Local | Emit): Local | Emit {
    const given = this.#spec.planes[pw].table;
    if (given === null) return field;
    const f = this.#f;
    const table = pw === 1 && zipsPlanes(this.#spec) ? given.map((byte) => byte ^ 128) : given;
    return f.op(this.#spec.relaxed ? "i8x16.relaxed_swizzle" : "i8x16.swizzle", f.constant(`table ${pw}`, f.v128(table)), field);
  }

  /** Even (half 0) or odd (half 1) bytes as i16 lanes. */
  half(bytes: Local | Emit, half: number): Emit {
    const f = this.#f;
    return half === 0 ? f.op("v128.and", bytes, this.mask16(0xff)) : f.op("i16x8.shr_u", bytes, f.i32(8));
  }

  /** The same from a field of one piece and no table, with one mask for both steps. */
  halfOfField(piece: Piece, vector: Emit, half: number): Emit {
    const f = this.#f;
    const shift = piece.from + 8 * half;
    const shifted = shift === 0 ? vector : f.op("i16x8.shr_u", vector, f.i32(shift));
    return shift + piece.bits === 16 ? shifted : f.op("v128.and", shifted, this.mask16((1 << piece.bits) - 1));
  }
}

/** Vectors that hold the operands of one quad of four rows. */
export function operandVectors(spec: Pick<GemmSpec, "style" | "activationBits" | "planes">): number {
  if (spec.style !== "simd") return spec.planes.length;
  return zipsPlanes(spec) ? 2 : 2 * spec.planes.length;
}

/** Bytes of the panel of one group: 16 rows. */
export const panelBytes = (spec: Pick<GemmSpec, "style" | "activationBits" | "planes" | "group">): number =>
  (spec.group / 4) * 64 * operandVectors(spec);

/**
 * Returns a writer of one quad's operands: quad `q` of the period at w + `base`, row vector `j`, into `out`. `keep`:
 * the vector of a period that has only one stays in a register from its first quad to its last.
 */
export function quadDecoder(
  f: FunctionBuilder,
  spec: GemmSpec,
  w: Local,
  keep: boolean,
): (base: number, q: number, j: number, out: readonly Local[]) => void {
  const { style } = spec;
  const layout = fieldLayout(spec.bits);
  const decoder = new Decoder(f, spec);
  const held = f.local("v128");
  const [field, low, high] = f.locals("v128", 3);
  return (base, q, j, out) => {
    const vector = (index: number): Emit => {
      const load = f.load("v128.load", w, base + index * 64 + 16 * j);
      if (layout.vectors > 1 || !keep) return load;
      return q === 0 ? f.tee(held, load) : f.get(held);
    };
    const pieces = layout.pieces[q];
    if (style === "simd" && spec.planes.length === 1 && spec.planes[0].table === null && pieces.length === 1) {
      const first = vector(pieces[0].vector);
      f.set(out[0], decoder.halfOfField(pieces[0], first, 0));
      const again = layout.vectors === 1 && keep ? f.get(held) : first;
      f.set(out[1], decoder.halfOfField(pieces[0], again, 1));
      return;
    }
    const bytes = decoder.field(pieces, vector);
    if (style !== "simd" && spec.planes.length === 1) {
      f.set(out[0], decoder.operand(0, bytes));
      return;
    }
    f.set(field, bytes);
    if (style !== "simd") {
      for (let pw = 0; pw < spec.planes.length; pw++) f.set(out[pw], decoder.operand(pw, field));
      return;
    }
    if (zipsPlanes(spec)) {
      f.set(low, decoder.operand(0, field));
      f.set(high, decoder.operand(1, field));
      f.set(out[0], f.shuffle([0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23], low, high));
      f.set(out[1], f.shuffle([8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31], low, high));
      return;
    }
    for (let pw = 0; pw < spec.planes.length; pw++) {
      f.set(low, decoder.operand(pw, field));
      for (let half = 0; half < 2; half++) f.set(out[2 * pw + half], decoder.half(low, half));
    }
  };
}

/** unpack(w, panel, groups): the operands of all 16 rows of a block. */
export function writeUnpack(f: FunctionBuilder, spec: GemmSpec): void {
  const [w, panel, groups] = [0, 1, 2].map((i) => f.param(i));
  const layout = fieldLayout(spec.bits);
  const count = operandVectors(spec);
  const [wAt, left] = f.locals("i32", 2);
  const decode = quadDecoder(f, spec, wAt, true);
  const out = f.locals("v128", count);
  f.doWhile(
    () => {
      f.set(wAt, w);
      f.set(left, f.i32(spec.group / (4 * layout.quads)));
      f.doWhile(() => {
        for (let j = 0; j < 4; j++)
          for (let q = 0; q < layout.quads; q++) {
            decode(0, q, j, out);
            out.forEach((vector, i) => f.store("v128.store", panel, ((4 * q + j) * count + i) * 16, vector));
          }
        f.bump(wAt, layout.vectors * 64);
        f.bump(panel, layout.quads * 64 * count);
        f.bump(left, -1);
      }, f.get(left));
      f.bump(w, weightRecord(spec).bytes);
      f.bump(groups, -1);
    },
    f.op("i32.gt_s", groups, f.i32(0)),
  );
}
