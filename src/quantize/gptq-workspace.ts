// Room for GPTQ of one weight after the other (bands of rows of one): what depends on the statistics alone, the factor,
// is made once and the arrays are used again. Internal.
import { factorScratch } from "./linalg.ts";
import { openAlgebra, type AlgebraOptions, type OpenAlgebra } from "./simd.ts";

/** Arrays in the memory that products work in. */
export interface HeldRoom {
  readonly algebra: OpenAlgebra;
  /** Rows that there is room for. */
  readonly rows: number;
  /** rows * k. */
  readonly wt: Float64Array;
  /** k * k. */
  readonly factor: Float64Array;
  readonly scratch: Float64Array;
  /** The factor once it is made, and the damping that it took. */
  factored?: { readonly factor: Float64Array; readonly damp: number };
}

export interface GptqWorkspace {
  /** The room of before where it is large enough. @throws LowbitError E_DEVICE where a backend has no memory left */
  open(rows: number, k: number, blockSize: number, options: AlgebraOptions, what: string): HeldRoom;
  /** Gives memory back. */
  close(): void;
}

/** An empty one; it opens what it needs, and must be closed. */
export function gptqWorkspace(): GptqWorkspace {
  let held: HeldRoom | undefined;
  const close = (): void => {
    held?.algebra.close();
    held = undefined;
  };
  return {
    open(rows, k, blockSize, options, what) {
      if (held !== undefined && rows <= held.rows) return held;
      close();
      const room = Math.max(factorScratch(k), blockSize * rows);
      const algebra = openAlgebra(k * k + rows * k + room, 3, options, what);
      const [wt, scratch, factor] = [rows * k, room, k * k].map((n) => algebra.array(n));
      return (held = { algebra, rows, wt, scratch, factor });
    },
    close,
  };
}
