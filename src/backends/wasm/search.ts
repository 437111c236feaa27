// Encoders that search scales, on kernels: the order of what is tried is the format's own (formats/core/search.ts), its
// loops run in engine memory, and results are the same bytes.
import { searchRoom, type SearchLoops, type SearchSpec } from "../../../formats/core/search.ts";
import type { OpaqueFormat } from "../../../formats/core/types.ts";
import type { Space, WasmFunction } from "../../../kernels/wasm/engine/engine.ts";
import { kernel } from "../../../kernels/wasm/engine/family.ts";
import { search as searchFamily, searchLayout } from "../../../kernels/wasm/convert/search.ts";

/** Loops over a workspace in engine memory; valid until that memory grows or the workspace is used again. */
function loopsIn(space: Space, spec: SearchSpec, weighted: boolean, shared: boolean): SearchLoops {
  const exports: Record<string, WasmFunction> = space.exports(kernel(searchFamily, { search: spec, weighted, shared }));
  const at = searchLayout(spec);
  const base = space.scratch("codec search", at.bytes);
  const { buffer } = space;
  const size = spec.runs * spec.size;
  const [x, u] = [new Float32Array(buffer, base + at.x, size), new Float32Array(buffer, base + at.u, size)];
  new Float32Array(buffer, base + at.widths, spec.widths.length).set(spec.widths);
  new Float64Array(buffer, base + at.own, spec.own.length).set(spec.own);
  const { search, place, judge } = exports;
  return {
    room: searchRoom(spec.runs, buffer, base + at.room),
    search(values, from, weights) {
      x.set(values.subarray(from, from + size));
      if (weights !== null) u.set(weights.subarray(from, from + size));
      search(base);
    },
    place: (d, dmin, reach) => void place(base, d, dmin, reach),
    judge: (d, dmin) => void judge(base, d, dmin),
  };
}

/** @see BulkCodec.encodeBlocks */
export function encodeBlocks(
  space: () => Space,
  shared: boolean,
  format: OpaqueFormat,
  x: Float32Array,
  importance: Float32Array | undefined,
): Uint8Array {
  const { search } = format;
  // levels of a table have no kernel
  if (search === undefined || (search.spec.kind === "signed" && search.spec.levels !== undefined)) return format.encodeBytes(x, importance);
  return search.encodeBytes(x, importance, loopsIn(space(), search.spec, importance !== undefined, shared));
}
