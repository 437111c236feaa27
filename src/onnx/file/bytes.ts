// Bytes as callers have them, as plain Uint8Arrays. A subclass must not reach the code below: Buffer.slice is a view,
// not a copy. Memory that another thread may write to, or that may be resized or taken away while the work goes on, is
// copied once.

const typedArrayTag = Object.getOwnPropertyDescriptor(Object.getPrototypeOf(Uint8Array.prototype), Symbol.toStringTag)!.get!;

/** What a value is, for messages: "Float32Array", "a string", "null". */
function kindOf(value: unknown): string {
  if (value === null || value === undefined) return String(value);
  if (typeof value !== "object") return `a ${typeof value}`;
  const name: unknown = (typedArrayTag.call(value) as string | undefined) ?? value.constructor?.name;
  return typeof name === "string" && name !== "" ? name : "an object";
}

const tagOf = (value: unknown): string => Object.prototype.toString.call(value);

/** True for memory whose size or content may change under the reader. */
function isUnsteady(buffer: ArrayBufferLike): boolean {
  const kinds = buffer as { resizable?: boolean; growable?: boolean };
  return tagOf(buffer) === "[object SharedArrayBuffer]" || kinds.resizable === true || kinds.growable === true;
}

/**
 * The bytes of a Uint8Array (Buffers and other subclasses, of any realm), a DataView, an ArrayBuffer or a
 * SharedArrayBuffer. A view where that is safe, a copy of shared and resizable memory.
 * @throws TypeError for anything else: typed arrays of other elements are no bytes
 */
export function plainBytes(value: unknown, what: string): Uint8Array<ArrayBuffer> {
  if (ArrayBuffer.isView(value)) {
    const tag = typedArrayTag.call(value) as string | undefined;
    if (tag === "Uint8Array" || tag === undefined) {
      const bytes = new Uint8Array(value.buffer, value.byteOffset, value.byteLength);
      return isUnsteady(value.buffer) ? new Uint8Array(bytes) : (bytes as Uint8Array<ArrayBuffer>);
    }
  } else if (tagOf(value) === "[object ArrayBuffer]" || tagOf(value) === "[object SharedArrayBuffer]") {
    const bytes = new Uint8Array(value as ArrayBuffer);
    return isUnsteady(value as ArrayBufferLike) ? new Uint8Array(bytes) : bytes;
  }
  throw new TypeError(`${what}: expected bytes (a Uint8Array or Buffer, an ArrayBuffer), got ${kindOf(value)}`);
}
