// Matrix products on integer operands: C[M,N] = A[M,K] * W[N,K]^T, activations as one or two int8 planes (or int16),
// weights as fields of 1..8 bits with block scales. One generator prints GEMV (MR = 1, 16 rows of W at once) and GEMM
// tiles (MR x 8 rows). The layout is docs/adding-a-kernel.md's "row block": 16 rows of W x one group of k, then that
// group's scales, zero points and addends, one stream.
import { family } from "../engine/family.ts";
import { ModuleBuilder, type Emit, type FunctionRef, type Operand } from "../engine/asm.ts";
import { activationRecord, weightRecord, type GemmSpec } from "./gemmspec.ts";
import { SINGLE_PARAMETERS, TILE_PARAMETERS, writeTile, type SingleParameter, type TileParameter } from "./gemmtile.ts";
import { writeWork } from "../engine/items.ts";
import { writeUnpack } from "./operands.ts";
import { aimAhead } from "../products/tiles.ts";

/** Arguments of `work`, i32 each. Its items are blocks of 16 rows of W, for one row of activations some of them. */
export const WORK_ARGUMENTS = ["a", "w", "c", "ldc", "groups", "tiles", "chunk", "aStride", "blocks", "items"] as const;

/**
 * A module with `tile` and `work`: a block runs over chunks of groups (kept in the first-level cache) and, within, over
 * tiles of activation rows; one row runs along several blocks at once. Micro-kernels are calls: V8 replaces no running
 * loop by better code.
 */
export function gemmModule(spec: GemmSpec): Uint8Array<ArrayBuffer> {
  const m = new ModuleBuilder({ shared: spec.shared });
  const parameters = new Array<"i32">(TILE_PARAMETERS.length).fill("i32");
  const tile: FunctionRef = m.func("tile", parameters, [], (f) => writeTile(f, spec));
  const unpack = spec.panel ? m.func("unpack", ["i32", "i32", "i32"], [], (f) => writeUnpack(f, spec)) : null;
  writeWork(m, (f, args, panel) => {
    const field = (name: (typeof WORK_ARGUMENTS)[number]): Emit => f.load("i32.load", args, 4 * WORK_ARGUMENTS.indexOf(name));
    const [w, c, chunk, left, first, a, count, at, ahead, aheadEnd, end] = f.locals("i32", 11);
    const record = weightRecord(spec).bytes;
    const actRecord = activationRecord(spec).bytes;
    const blockBytes = f.op("i32.mul", field("groups"), f.i32(record));
    if (spec.mr > 1) f.set(end, f.op("i32.add", field("w"), f.op("i32.mul", field("blocks"), blockBytes)));
    return (block) => {
      if (spec.mr === 1) {
        // item i: blocks i, i + items, i + 2 * items, ..., so that the items of a thread go on along all strands
        const behind = f.op("i32.sub", f.op("i32.sub", field("blocks"), f.i32(1)), block);
        const given: Record<SingleParameter, Operand> = {
          a: field("a"),
          w: f.op("i32.add", field("w"), f.op("i32.mul", block, blockBytes)),
          c: f.op("i32.add", field("c"), f.op("i32.shl", block, f.i32(6))),
          ldc: field("ldc"),
          groups: field("groups"),
          tiles: field("tiles"),
          aStride: field("aStride"),
          chunk: field("chunk"),
          strands: f.op("i32.add", f.op("i32.div_u", behind, field("items")), f.i32(1)),
          wStride: f.op("i32.mul", field("items"), blockBytes),
          cStride: f.op("i32.shl", field("items"), f.i32(6)),
        };
        f.run(f.call(tile, ...SINGLE_PARAMETERS.map((name) => given[name])));
        return;
      }
      f.set(w, f.op("i32.add", field("w"), f.op("i32.mul", block, blockBytes)));
      f.set(c, f.op("i32.add", field("c"), f.op("i32.mul", block, f.i32(64))));
      f.set(left, field("groups"));
      f.set(first, f.i32(0));
      f.while(f.op("i32.gt_s", left, f.i32(0)), () => {
        f.set(chunk, field("chunk"));
        f.set(count, f.op("select", chunk, left, f.op("i32.lt_s", chunk, left)));
        f.set(at, f.op("i32.add", w, f.op("i32.mul", first, f.i32(record))));
        if (unpack !== null) f.run(f.call(unpack, at, panel, count));
        f.set(a, f.op("i32.add", field("a"), f.op("i32.mul", first, f.i32(actRecord))));
        // the chunk that follows in memory is the next one of this worker
        const next = f.op("i32.add", at, f.op("i32.mul", count, f.i32(record)));
        aimAhead(f, ahead, aheadEnd, next, f.op("i32.mul", chunk, f.i32(record)), end);
        const given: Record<TileParameter, Operand> = {
          a,
          w: at,
          c,
          ldc: field("ldc"),
          groups: count,
          tiles: field("tiles"),
          aStride: field("aStride"),
          fresh: f.op("i32.eqz", first),
          panel,
          ahead,
          aheadEnd,
        };
        f.run(f.call(tile, ...TILE_PARAMETERS.map((name) => given[name])));
        f.bump(first, count);
        f.set(left, f.op("i32.sub", left, count));
      });
    };
  });
  return m.bytes();
}

export const gemm = family("gemm", gemmModule);
