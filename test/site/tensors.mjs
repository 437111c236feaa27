/* global atob, DataTransfer, Event, File */
// Files of one matrix in each kind that the explorer opens, written here byte by byte from the formats' descriptions.

const floats = (values) => Buffer.from(Float32Array.from(values).buffer);
const u32 = (n) => Buffer.from(Uint32Array.of(n).buffer);
const u64 = (n) => Buffer.from(BigUint64Array.of(BigInt(n)).buffer);

export function npy(values, [rows, k]) {
  const text = `{'descr': '<f4', 'fortran_order': False, 'shape': (${rows}, ${k}), }`.padEnd(117) + "\n";
  return Buffer.concat([Buffer.from([0x93, 0x4e, 0x55, 0x4d, 0x50, 0x59, 1, 0, text.length, 0]), Buffer.from(text), floats(values)]);
}

export function safetensors(values, shape) {
  const head = Buffer.from(JSON.stringify({ "model.weight": { dtype: "F32", shape, data_offsets: [0, 4 * values.length] } }));
  return Buffer.concat([u64(head.length), head, floats(values)]);
}

/** Version 3, one F32 tensor, no metadata: ggml counts dimensions from the innermost. */
export function gguf(values, [rows, k]) {
  const name = Buffer.from("blk.0.weight");
  const head = Buffer.concat([Buffer.from("GGUF"), u32(3), u64(1), u64(0), u64(name.length), name, u32(2), u64(k), u64(rows), u32(0), u64(0)]); // prettier-ignore
  return Buffer.concat([head, Buffer.alloc((32 - (head.length % 32)) % 32), floats(values)]);
}

/** y = x W with W [k, n] as protobuf: a field is key << 3 | wire type, then a varint or a length and bytes. */
export function onnx(values, [k, n]) {
  const varint = (x) => {
    const out = [];
    for (; x > 127; x = Math.floor(x / 128)) out.push((x % 128) + 128);
    return Buffer.from([...out, x]);
  };
  const number = (field, x) => Buffer.concat([varint(field * 8), varint(x)]);
  const bytes = (field, x) => Buffer.concat([varint(field * 8 + 2), varint(Buffer.from(x).length), Buffer.from(x)]);
  const message = (field, ...parts) => bytes(field, Buffer.concat(parts));
  const info = (field, name, dims) =>
    message(field, bytes(1, name), message(2, message(1, number(1, 1), message(2, ...dims.map((d) => message(1, number(1, d)))))));
  const node = message(1, bytes(1, "x"), bytes(1, "W"), bytes(2, "y"), bytes(3, "product"), bytes(4, "MatMul"));
  const weight = message(5, number(1, k), number(1, n), number(2, 1), bytes(8, "W"), bytes(9, floats(values)));
  const graph = message(7, node, bytes(2, "g"), weight, info(11, "x", [1, k]), info(12, "y", [1, n]));
  return Buffer.concat([number(1, 8), graph, message(8, bytes(1, ""), number(2, 17))]);
}

/** Drops a file on the panel, as a visitor does. */
export async function drop(page, name, bytes) {
  await page.getByTestId("tensor").evaluate(
    (panel, { name, base64 }) => {
      const data = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
      const files = new DataTransfer();
      files.items.add(new File([data], name));
      const event = new Event("drop", { bubbles: true, cancelable: true });
      Object.defineProperty(event, "dataTransfer", { value: files });
      panel.dispatchEvent(event);
    },
    { name, base64: bytes.toString("base64") },
  );
}
