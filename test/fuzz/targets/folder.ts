// Small folders as one input: a line of JSON with names and sizes, then the bytes. Damage goes to one file of it.
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { random, type Random } from "../../helpers/random.ts";
import { damageBytes, damageJson, pick } from "../fuzz.ts";

export type Folder = Readonly<Record<string, Uint8Array>>;

const encode = (value: unknown): Uint8Array => new TextEncoder().encode(JSON.stringify(value) ?? "");
export const json = encode;

export function archive(folder: Folder): Uint8Array {
  const names = Object.keys(folder);
  const head = new TextEncoder().encode(`${JSON.stringify(names.map((name) => [name, folder[name].length]))}\n`);
  const out = new Uint8Array(head.length + names.reduce((n, name) => n + folder[name].length, 0));
  out.set(head);
  let at = head.length;
  for (const name of names) {
    out.set(folder[name], at);
    at += folder[name].length;
  }
  return out;
}

/** A safetensors file whose header is changed, its data kept. */
function damageHeader(rng: Random, bytes: Uint8Array, words: readonly string[]): Uint8Array {
  const length = Number(new DataView(bytes.buffer, bytes.byteOffset).getBigUint64(0, true));
  const header = encode(damageJson(rng, JSON.parse(new TextDecoder().decode(bytes.subarray(8, 8 + length))), words));
  const out = new Uint8Array(bytes.length - length + header.length);
  new DataView(out.buffer).setBigUint64(0, BigInt(header.length), true);
  out.set(header, 8);
  out.set(bytes.subarray(8 + length), 8 + header.length);
  return out;
}

/** One or two files changed, by what they are. */
export function damageFolder(rng: Random, folder: Folder, words: readonly string[]): Uint8Array {
  const out: Record<string, Uint8Array> = { ...folder };
  for (let n = 1 + rng.integer(2); n > 0; n--) {
    const name = pick(rng, Object.keys(folder));
    const bytes = folder[name];
    if (rng.next() < 0.25 || bytes.length < 8) out[name] = damageBytes(rng, bytes);
    else if (name.endsWith(".json")) out[name] = encode(damageJson(rng, JSON.parse(new TextDecoder().decode(bytes)), words));
    else if (name.endsWith(".safetensors")) out[name] = damageHeader(rng, bytes, words);
    else out[name] = damageBytes(rng, bytes);
  }
  return archive(out);
}

/** Calls `use` with the folder that an input is, on the disk. What is no archive is an empty folder. */
export async function withFolder<T>(input: Uint8Array, use: (folder: string) => Promise<T>): Promise<T> {
  const folder = mkdtempSync(join(tmpdir(), "lowbit-fuzz-"));
  try {
    let at = input.indexOf(10) + 1;
    for (const [name, length] of JSON.parse(new TextDecoder().decode(input.subarray(0, at)) || "[]") as [string, number][]) {
      writeFileSync(join(folder, name), input.subarray(at, at + length));
      at += length;
    }
    return await use(folder);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

/** Bytes of a shape's size, the same for the same number. */
export const filled = (count: number, seed: number): Uint8Array<ArrayBuffer> => {
  const rng = random(seed);
  return Uint8Array.from({ length: count }, () => rng.integer(256));
};
