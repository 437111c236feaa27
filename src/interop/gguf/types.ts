// The tensor types of ggml by their id in GGUF files. Spec: ggml-org/ggml include/ggml.h (enum ggml_type). Block
// formats carry their id as `gguf`.
import type { Format, NumberFormat, OpaqueFormat } from "../../../formats/core/types.ts";
import { allFormats, format } from "../../../formats/registry.ts";

/** One tensor type. */
export interface GgufType {
  readonly id: number;
  /** ggml's name: Q4_K, F16, I32. */
  readonly name: string;
  /** Elements and bytes of a block; 1 and the size of one element for plain types. */
  readonly blockSize: number;
  readonly blockBytes: number;
  /** The format of its values; none for int64, which no number holds exactly. */
  readonly format?: Format;
}

/** Plain types: id, name, bytes, format by name. */
const PLAIN: readonly (readonly [number, string, number, string | undefined])[] = [
  [0, "F32", 4, "float32"],
  [1, "F16", 2, "float16"],
  [24, "I8", 1, "int8"],
  [25, "I16", 2, undefined],
  [26, "I32", 4, undefined],
  [27, "I64", 8, undefined],
  [28, "F64", 8, undefined],
  [30, "BF16", 2, "bfloat16"],
];

let table: Map<number, GgufType> | undefined;
let names: Map<string, GgufType> | undefined;

/**
 * All types by id.
 * @example ggufTypes().get(12)?.name // "Q4_K"
 */
export function ggufTypes(): ReadonlyMap<number, GgufType> {
  if (table !== undefined) return table;
  table = new Map(
    PLAIN.map(([id, name, blockBytes, f]) => [
      id,
      { id, name, blockSize: 1, blockBytes, ...(f === undefined ? {} : { format: format(f) as NumberFormat }) },
    ]),
  );
  for (const f of allFormats)
    if (f.kind === "opaque" && f.gguf !== undefined)
      table.set(f.gguf, { id: f.gguf, name: typeName(f), blockSize: f.blockSize, blockBytes: f.blockBytes, format: f });
  return table;
}

/** The family's prefix taken away, as ggml spells it. */
const typeName = (f: OpaqueFormat): string => f.name.slice(f.name.indexOf("_") + 1).toUpperCase();

/**
 * The type of a name, in any case: "q4_k", "F16".
 * @example ggufTypeByName("q4_k")?.id // 12
 */
export function ggufTypeByName(name: string): GgufType | undefined {
  names ??= new Map([...ggufTypes().values()].map((t) => [t.name, t]));
  return names.get(name.toUpperCase());
}

/** The type that holds tensors of a format as they are, without a change of codes. */
export function ggufTypeOf(f: Format): GgufType | undefined {
  return f.kind === "opaque" && f.gguf !== undefined ? ggufTypes().get(f.gguf) : [...ggufTypes().values()].find((t) => t.format === f);
}
