// GGUF files: made field by field with wrong counts, types, sizes and offsets in between, or a sound file of ggml's own
// writer, damaged.
import { readFileSync } from "node:fs";
import { readGguf } from "../../../src/interop/index.ts";
import type { Random } from "../../helpers/random.ts";
import type { FuzzTarget } from "../fuzz.ts";
import { damageBytes, pick } from "../fuzz.ts";

const whole = new Uint8Array(readFileSync(new URL("../../fixtures/gguf/all-types.gguf", import.meta.url)));
const KEYS = [
  "general.architecture",
  "general.alignment",
  "general.file_type",
  "tokenizer.ggml.tokens",
  "__proto__",
  "",
  "constructor",
  "llama.block_count",
];
const NAMES = ["w", "blk.0.attn_q.weight", "__proto__", "toString", "", "a".repeat(80), "w\u0000", "output.weight"];
/** Counts and lengths where one more or less, or far too many, matters. */
const WILD = [0n, 1n, 2n, 3n, 255n, 65536n, 0x7fffffffn, 0xffffffffn, 1n << 40n, (1n << 53n) + 1n, (1n << 63n) - 1n, (1n << 64n) - 1n];
/**
 * Bytes of a scalar of each value type of GGUF: u8, i8, u16, i16, u32, i32, f32, bool; string and array are null; u64,
 * i64, f64.
 */
const SIZES = [1, 1, 2, 2, 4, 4, 4, 1, null, null, 8, 8, 8] as const;

function writer(rng: Random) {
  const bytes: number[] = [];
  const uint = (value: bigint | number, size: number): void => {
    let rest = BigInt.asUintN(64, BigInt(value));
    for (let i = 0; i < size; i++, rest >>= 8n) bytes.push(Number(rest & 255n));
  };
  const count = (right: number | bigint, share = 0.03): void => uint(rng.next() < share ? pick(rng, WILD) : right, 8);
  const text = (value: string): void => {
    const encoded = rng.next() < 0.02 ? Uint8Array.of(0xff, 0xfe, 0xc0) : new TextEncoder().encode(value);
    count(encoded.length);
    bytes.push(...encoded);
  };
  const value = (type: number, depth: number): void => {
    const size = SIZES[type];
    if (size === undefined) return uint(rng.integer(2 ** 16), 4);
    if (size !== null) return uint(rng.next() < 0.5 ? rng.integer(64) : pick(rng, WILD), size);
    if (type === 8) return text(pick(rng, NAMES));
    const inner = depth > 6 ? 0 : rng.next() < 0.1 ? 9 : rng.integer(14);
    const length = rng.integer(5);
    uint(inner, 4);
    count(length, 0.1);
    for (let i = 0; i < length; i++) value(inner, depth + 1);
  };
  return { bytes, uint, count, text, value };
}

function made(rng: Random): Uint8Array {
  const { bytes, uint, count, text, value } = writer(rng);
  bytes.push(0x47, 0x47, 0x55, 0x46);
  uint(rng.next() < 0.9 ? 2 + rng.integer(2) : pick(rng, [0, 1, 4, 0x03000000]), 4);
  const tensors = rng.integer(4);
  const entries = rng.integer(5);
  count(tensors);
  count(entries);
  for (let i = 0; i < entries; i++) {
    const key = pick(rng, KEYS);
    text(key);
    const type = key === "general.alignment" && rng.next() < 0.7 ? 4 : rng.next() < 0.97 ? rng.integer(13) : rng.integer(2 ** 20);
    uint(type, 4);
    if (key === "general.alignment" && type === 4) uint(pick(rng, [32, 32, 32, 8, 1, 0, 7, 2 ** 31]), 4);
    else value(type, 0);
  }
  let at = 0;
  for (let i = 0; i < tensors; i++) {
    text(`${pick(rng, NAMES)}${rng.next() < 0.9 ? i : ""}`);
    const rank = rng.next() < 0.95 ? 1 + rng.integer(3) : rng.integer(8);
    uint(rank, 4);
    for (let d = 0; d < rank; d++) count(d === 0 ? pick(rng, [32, 64, 256, 5]) : 1 + rng.integer(3), 0.05);
    uint(rng.next() < 0.9 ? rng.integer(36) : rng.integer(2 ** 31), 4);
    uint(rng.next() < 0.9 ? at : pick(rng, WILD), 8);
    at += 32 * rng.integer(20);
  }
  while (bytes.length % 32 !== 0) bytes.push(0);
  return Uint8Array.from({ length: bytes.length + rng.integer(4096) }, (_, i) => (i < bytes.length ? bytes[i] : rng.integer(256)));
}

export const gguf: FuzzTarget = {
  name: "gguf",
  make(rng) {
    const bytes = rng.next() < 0.3 ? whole : made(rng);
    return bytes === whole || rng.next() < 0.2 ? damageBytes(rng, bytes) : bytes;
  },
  async run(input) {
    const file = await readGguf(input);
    for (const { shape, values, packed } of file.tensors.values()) {
      if (shape.reduce((a, b) => a * b, 1) > 2 ** 16) continue;
      await values();
      await packed().catch((error: { code?: string }) => {
        // Integers above 8 bits and float64 have no packed form.
        if (error.code !== "E_UNSUPPORTED") throw error;
      });
    }
    return undefined;
  },
};
