// .npy and .npz files, as calibration and --inputs read them and as `readNpy` and `readNpz` do.
import { crc32, deflateRawSync } from "node:zlib";
import { readNpy, readNpz } from "../../../src/interop/index.ts";
import { parseNpy, parseNpz } from "../../../src/onnx/calibrate/npy.ts";
import type { Random } from "../../helpers/random.ts";
import type { FuzzTarget } from "../fuzz.ts";
import { damageBytes, pick, readByAll } from "../fuzz.ts";

const DESCRIPTORS = ["<f4", "<f8", "<f2", "<i8", "<i4", "|i1", "|u1", "|b1", ">f4", "|O", "<U5", "<c8", "", "__proto__", "<f4, <f4"];
const SIZES = ["2", "3", "0", "1", "-1", "4294967296", "9007199254740993", "1e3", " ", "99999999999999999999999999", "2147483647"];

function npy(rng: Random): Uint8Array {
  const good = rng.next() < 0.4;
  const dims = good ? ["2", "3"] : Array.from({ length: rng.integer(5) }, () => pick(rng, SIZES));
  const descr = good ? "<f4" : pick(rng, DESCRIPTORS);
  const order = good || rng.next() < 0.8 ? "False" : pick(rng, ["True", "Maybe", "1"]);
  let text = `{'descr': '${descr}', 'fortran_order': ${order}, 'shape': (${dims.join(", ")}${dims.length === 1 ? "," : ""}), }`;
  if (rng.next() < 0.1) text = pick(rng, ["", "{}", text.slice(0, 20), `${text}${text}`, text.replaceAll("'", '"')]);
  const header = new TextEncoder().encode(`${text}\n`);
  const version = rng.next() < 0.8 ? 1 : rng.integer(5);
  const start = version === 1 ? 10 : 12;
  const out = new Uint8Array(start + header.length + (rng.next() < 0.8 ? 24 : rng.integer(64)));
  out.set([0x93, 0x4e, 0x55, 0x4d, 0x50, 0x59, version, 0]);
  const length = header.length + (rng.next() < 0.9 ? 0 : rng.integer(40) - 20);
  const view = new DataView(out.buffer);
  if (version === 1) view.setUint16(8, length, true);
  else view.setUint32(8, rng.next() < 0.9 ? length : 0xffffffff, true);
  out.set(header, start);
  return out;
}

/** Numbers that a zip's fields may hold in the place of the right one. */
const wild = (rng: Random, right: number, share = 0.04): number =>
  rng.next() < share ? pick(rng, [0, 1, right + 1, right - 1, 0xffff, 0xffffffff, 0x7fffffff, rng.integer(400)]) : right;

function npz(rng: Random): Uint8Array {
  const parts: Uint8Array[] = [];
  const directory: Uint8Array[] = [];
  let at = 0;
  const add = (list: Uint8Array[], length: number, set: (view: DataView) => void, ...more: Uint8Array[]): void => {
    const bytes = new Uint8Array(length);
    set(new DataView(bytes.buffer));
    list.push(bytes, ...more);
  };
  const count = rng.integer(4);
  for (let i = 0; i < count; i++) {
    const data = npy(rng);
    const deflated = rng.next() < 0.5;
    const packed = deflated ? new Uint8Array(deflateRawSync(rng.next() < 0.05 ? new Uint8Array(2 ** 22) : data)) : data;
    const name = new TextEncoder().encode(pick(rng, ["x.npy", "y.npy", "__proto__.npy", "../z.npy", "a/b.npy", "x", ".npy"]));
    const from = at;
    const local = parts.length;
    add(
      parts,
      30,
      (view) => {
        view.setUint32(0, 0x04034b50, true);
        view.setUint16(26, wild(rng, name.length), true);
        view.setUint16(28, wild(rng, 0), true);
      },
      name,
      packed,
    );
    for (const part of parts.slice(local)) at += part.length;
    const wide = rng.next() < 0.3;
    const extra = new Uint8Array(wide ? 20 : 0);
    if (wide) {
      const view = new DataView(extra.buffer);
      view.setUint16(0, 1, true);
      view.setUint16(2, wild(rng, 16, 0.2), true);
      view.setBigUint64(4, BigInt(wild(rng, data.length, 0.2)) << BigInt(rng.next() < 0.1 ? 32 : 0), true);
      view.setBigUint64(12, BigInt(wild(rng, packed.length, 0.2)), true);
    }
    add(
      directory,
      46,
      (view) => {
        view.setUint32(0, 0x02014b50, true);
        view.setUint16(10, wild(rng, deflated ? 8 : 0), true);
        view.setUint32(16, wild(rng, crc32(data)), true);
        view.setUint32(20, wide ? 0xffffffff : wild(rng, packed.length), true);
        view.setUint32(24, wide ? 0xffffffff : wild(rng, data.length), true);
        view.setUint16(28, wild(rng, name.length), true);
        view.setUint16(30, wild(rng, extra.length), true);
        view.setUint16(32, wild(rng, 0), true);
        view.setUint32(42, wild(rng, from), true);
      },
      name,
      extra,
    );
  }
  add(directory, 22, (view) => {
    view.setUint32(0, 0x06054b50, true);
    view.setUint16(10, wild(rng, count), true);
    view.setUint32(
      12,
      wild(
        rng,
        directory.reduce((sum, part) => sum + part.length, 0),
      ),
      true,
    );
    view.setUint32(16, wild(rng, at), true);
  });
  return Buffer.concat([...parts, ...directory]);
}

export const npzTarget: FuzzTarget = {
  name: "npz",
  make(rng) {
    const bytes = rng.next() < 0.4 ? npy(rng) : npz(rng);
    return rng.next() < 0.25 ? damageBytes(rng, bytes) : bytes;
  },
  async run(input) {
    const ranges = async (): Promise<void> => {
      const file = await readNpz(input);
      for (const read of file.arrays.values()) await read();
      await file.close();
    };
    await readByAll(input[0] === 0x93 ? [() => parseNpy(input, "x.npy"), () => readNpy(input)] : [() => parseNpz(input, "x.npz"), ranges]);
    return undefined;
  },
};
