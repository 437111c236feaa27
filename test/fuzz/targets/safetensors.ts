// safetensors files: packed tensors as this package writes them, and plain ones of every dtype, as anyone and as
// calibration reads them.
import { allFormats } from "../../../formats/index.ts";
import { readSafetensors } from "../../../src/interop/index.ts";
import { dequantize, fromSafetensors, quantize, tensor, toSafetensors } from "../../../src/index.ts";
import { readSafetensorsFeeds } from "../../../src/onnx/calibrate/npy.ts";
import type { FuzzTarget } from "../fuzz.ts";
import { damageBytes, damageJson, pick, readByAll } from "../fuzz.ts";
import { normalArray } from "../../helpers/random.ts";

const DTYPES = [
  ["F64", 64], ["F16", 16], ["BF16", 16], ["F8_E4M3", 8], ["F8_E5M2", 8], ["F8_E8M0", 8], ["F4", 4], ["U64", 64], ["I32", 32], ["U16", 16],
  ["I8", 8], ["BOOL", 8],
] as const; // prettier-ignore

const WORDS = [
  ...DTYPES.map(([dtype]) => dtype),
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

/** Two tensors that calibration takes, and one of each dtype beside them. */
function plain(all: boolean): Uint8Array {
  const header: Record<string, { dtype: string; shape: number[]; data_offsets: [number, number] }> = {};
  let at = 0;
  const add = (name: string, dtype: string, shape: number[], bytes: number): void => {
    header[name] = { dtype, shape, data_offsets: [at, (at += bytes)] };
  };
  add("a", "F32", [2, 3], 24);
  add("b", "I64", [1], 8);
  if (all) for (const [dtype, bits] of DTYPES) add(dtype, dtype, [2, 2], bits / 2);
  return join(header, new Uint8Array(at).fill(1), 0);
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
    const bytes = rng.next() < 0.3 ? plain(rng.next() < 0.5) : seed(rng.integer(blocks.length));
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
    await readByAll([
      () => {
        for (const w of Object.values(fromSafetensors(input))) if (w.rows * w.k <= 2 ** 16) dequantize(w);
      },
      async () => {
        const file = await readSafetensors(input);
        for (const t of file.tensors.values()) await t.elements();
        await file.close();
      },
      () => readSafetensorsFeeds(input, "x.safetensors"),
    ]);
    return undefined;
  },
};
