// An index as one file. After the magic word and the length of a header come the header (JSON, versioned) and sections
// of bytes, each at a multiple of 8: ids, the matrix and mean of a projection, and each stage as safetensors of packed
// tensors (src/tensor/container.ts), which any safetensors reader opens. Removed vectors are left out where rows can be
// taken apart; else a bitmap of rows says which are there.
import type { PackedTensor } from "../../formats/core/types.ts";
import { toSafetensors } from "../tensor/container.ts";
import type { Ids } from "./ids.ts";
import type { Checked } from "./options.ts";
import { rowsApart, takeRows } from "./rows.ts";
import type { Sketch } from "./sketch.ts";
import type { Projection, ScanStore } from "./types.ts";

/** The stages of an index, for saving it. */
export interface Stages {
  readonly checked: Checked;
  readonly ids: Ids;
  readonly projection: Projection | null;
  readonly stages: readonly ScanStore[];
  readonly sketch: Sketch | null;
}
export const MAGIC = "lowbitix";
/** 2: with a sketch. */
export const VERSIONS: readonly unknown[] = [1, 2];
/** Magic word, and the length of the header as a 32-bit number, little-endian. */
export const HEAD_BYTES = 12;

export interface Header {
  readonly version: number;
  readonly dims: number;
  readonly metric: string;
  readonly rows: number;
  /** Candidates of a search with two stages, or null for the default. */
  readonly candidates: number | null;
  /** Formats by their definitions. */
  readonly formats: readonly object[];
  readonly projection: { readonly method: string; readonly to: number } | null;
  /** Version 2: how many rows a sketch leaves, of how many. */
  readonly sketch?: { readonly candidates: number; readonly tested: number };
  readonly sections: readonly { readonly name: string; readonly bytes: number }[];
}

const bytesOf = (x: Float32Array | Uint32Array): Uint8Array => new Uint8Array(x.buffer, x.byteOffset, x.byteLength);

/** @see SearchIndex.toBytes */
export function indexBytes({ checked, ids, projection, stages, sketch }: Stages): Uint8Array<ArrayBuffer> {
  const { live } = ids;
  const isLive = (row: number): boolean => live === null || ((live[row >> 3] >> (row & 7)) & 1) === 1;
  const apart = live !== null && stages.every(({ format }) => rowsApart(format));
  const all = apart ? ids.all.filter((_, row) => isLive(row)) : ids.all;
  const sections: (readonly [name: string, bytes: Uint8Array])[] = [["ids", bytesOf(all)]];
  if (live !== null && !apart) sections.push(["live", live]);
  if (projection?.matrix) sections.push(["matrix", bytesOf(projection.matrix)]);
  if (projection?.mean) sections.push(["mean", bytesOf(projection.mean)]);
  if (sketch !== null) sections.push(["centre", bytesOf(sketch.centre)]);
  [...stages, ...(sketch === null ? [] : [sketch.rows])].forEach((stage, i) => {
    let first = 0;
    const parts = stage.packed().flatMap((packed): PackedTensor[] => {
      const from = first;
      first += packed.rows;
      const kept = apart ? takeRows(packed, (row) => isLive(from + row)) : packed;
      return kept === null ? [] : [kept];
    });
    sections.push([
      i < stages.length ? `stage${i}` : "sketch",
      toSafetensors(Object.fromEntries(parts.map((packed, part) => [`part${part}`, packed]))),
    ]);
  });
  const header: Header = {
    version: sketch === null ? 1 : 2,
    dims: checked.dims,
    metric: checked.metric,
    rows: all.length,
    candidates: checked.candidates,
    formats: stages.map(({ format }) => format.definition),
    projection: projection === null ? null : { method: projection.method, to: projection.to },
    ...(sketch === null ? {} : { sketch: { candidates: sketch.candidates, tested: sketch.tested } }),
    sections: sections.map(([name, bytes]) => ({ name, bytes: bytes.length })),
  };
  const json = new TextEncoder().encode(JSON.stringify(header));
  const start = 8 * Math.ceil((HEAD_BYTES + json.length) / 8);
  const places: number[] = [];
  let end = start;
  for (const [, bytes] of sections) {
    places.push(end);
    end += 8 * Math.ceil(bytes.length / 8);
  }
  const out = new Uint8Array(end);
  out.set(new TextEncoder().encode(MAGIC));
  new DataView(out.buffer).setUint32(8, start - HEAD_BYTES, true);
  out.fill(0x20, HEAD_BYTES, start);
  out.set(json, HEAD_BYTES);
  sections.forEach(([, bytes], i) => out.set(bytes, places[i]));
  return out;
}
