// safetensors files: packed tensors as this package writes them, and plain ones as calibration reads them.
import { allFormats } from "../../../formats/index.ts";
import { dequantize, fromSafetensors, quantize, tensor, toSafetensors } from "../../../src/index.ts";
import { readSafetensorsFeeds } from "../../../src/onnx/calibrate/npy.ts";
import type { FuzzTarget } from "../fuzz.ts";
import { damageBytes, damageJson, pick } from "../fuzz.ts";
import { normalArray } from "../../helpers/random.ts";

const WORDS = [
  "U8",
  "F32",
  "F16",
  "BF16",
  "I64",
  "BOOL",
  "weight",
  "weight.codes",
  "weight.scales",
  "__metadata__",
  "lowbit",
  "block",
  "float",
  "int",
  "codebook",
  "posit",
  "opaque",
  "zeroPoint",
];

const blocks = allFormats.filter((f) => f.kind === "block" || f.kind === "opaque");
/** Small packed tensors of every block format, made on first use. */
const seeds = new Map<number, Uint8Array>();
function seed(at: number): Uint8Array {
  let made = seeds.get(at);
  if (made === undefined) {
    const format = blocks[at];
    const k = format.kind === "opaque" ? format.blockSize : 64;
    made = toSafetensors({ weight: quantize(tensor(normalArray(2 * k, at + 1), [2, k]), format as never) });
    seeds.set(at, made);
  }
  return made;
}

function plain(): Uint8Array {
  const header = { a: { dtype: "F32", shape: [2, 3], data_offsets: [0, 24] }, b: { dtype: "I64", shape: [1], data_offsets: [24, 32] } };
  return join(header, new Uint8Array(32), 0);
}

function join(header: unknown, data: Uint8Array, wrong: number): Uint8Array {
  const json = new TextEncoder().encode(JSON.stringify(header) ?? "");
  const out = new Uint8Array(8 + json.length + data.length);
  new DataView(out.buffer).setBigUint64(0, BigInt.asUintN(64, BigInt(json.length + wrong)), true);
  out.set(json, 8);
  out.set(data, 8 + json.length);
  return out;
}

export const safetensors: FuzzTarget = {
  name: "safetensors",
  make(rng) {
    const bytes = rng.next() < 0.2 ? plain() : seed(rng.integer(blocks.length));
    if (rng.next() < 0.2) return damageBytes(rng, bytes);
    const length = Number(new DataView(bytes.buffer, bytes.byteOffset).getBigUint64(0, true));
    const header = JSON.parse(new TextDecoder().decode(bytes.subarray(8, 8 + length))) as Record<string, unknown>;
    const data = bytes.subarray(8 + length);
    const meta = header["__metadata__"] as { lowbit: string } | undefined;
    const changed =
      meta !== undefined && rng.next() < 0.6
        ? { ...header, __metadata__: { lowbit: JSON.stringify(damageJson(rng, JSON.parse(meta.lowbit), WORDS)) } }
        : damageJson(rng, header, WORDS);
    const out = join(changed, data, rng.next() < 0.1 ? pick(rng, [1, -1, 2 ** 31, 2 ** 53, -8]) : 0);
    return rng.next() < 0.15 ? damageBytes(rng, out) : out;
  },
  async run(input) {
    let first: unknown;
    try {
      for (const w of Object.values(fromSafetensors(input))) if (w.rows * w.k <= 2 ** 16) dequantize(w);
    } catch (error) {
      first = error;
    }
    await readSafetensorsFeeds(input, "x.safetensors");
    if (first !== undefined) throw first;
    return undefined;
  },
};
