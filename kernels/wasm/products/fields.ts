// Where the bits of a weight code sit in a 16-byte vector. A vector holds bytes of 4 output rows (i32 lane = row) x 4
// consecutive k ("a quad"); a byte holds floor(8 / bits) whole fields, and the bits left over in several vectors make
// further fields. So every width from 1 to 8 is stored without waste and decodes by shifts and masks. `layout`
// describes it; packing and kernels both follow the description.

/** `bits` bits of byte position `from` in vector `vector` land at bit `to` of the decoded field. */
export interface Piece {
  readonly vector: number;
  readonly from: number;
  readonly bits: number;
  readonly to: number;
}

export interface FieldLayout {
  readonly bits: number;
  /** A period: `vectors` vectors per 4 rows hold `quads` quads (4 k each). */
  readonly vectors: number;
  readonly quads: number;
  /** For each quad of the period, the pieces of its fields. */
  readonly pieces: readonly (readonly Piece[])[];
}

const cache: FieldLayout[] = [];

/** Layout of fields of 1..8 bits. */
export function fieldLayout(bits: number): FieldLayout {
  if (cache[bits] !== undefined) return cache[bits];
  const whole = Math.floor(8 / bits);
  const rest = 8 - whole * bits;
  // the fewest vectors whose left-over bits make whole fields
  let vectors = 1;
  while ((vectors * rest) % bits !== 0) vectors++;
  const extra = (vectors * rest) / bits;
  const pieces: Piece[][] = [];
  for (let vector = 0; vector < vectors; vector++) for (let i = 0; i < whole; i++) pieces.push([{ vector, from: i * bits, bits, to: 0 }]);
  const left = Array.from({ length: vectors }, () => rest);
  const added: Piece[][] = Array.from({ length: extra }, () => []);
  const have = new Array<number>(extra).fill(0);
  const take = (e: number, vector: number): void => {
    const n = Math.min(bits - have[e], left[vector]);
    if (n === 0) return;
    added[e].push({ vector, from: 8 - left[vector], bits: n, to: have[e] });
    have[e] += n;
    left[vector] -= n;
  };
  // one large piece each first: the fewer pieces, the fewer shifts
  for (let e = 0; e < extra; e++) take(e, e);
  for (let e = 0; e < extra; e++) for (let vector = 0; vector < vectors; vector++) take(e, vector);
  const layout = { bits, vectors, quads: pieces.length + extra, pieces: [...pieces, ...added] };
  cache[bits] = layout;
  return layout;
}
