// Byte sources: where a model's bytes are read from (memory here, files in files.ts), and payloads: one tensor's bytes
// inside a source. Reads are synchronous and at most a few dozen MiB each: nothing here holds a whole file.
import { LowbitError } from "../../../formats/core/errors.ts";
import { plainBytes } from "./bytes.ts";

/**
 * Random access to bytes. `read` returns exactly `length` bytes; it may return a view that must not be written to. A
 * source that would allocate uses `into` instead where it is given and long enough.
 */
export interface ByteSource {
  readonly size: number;
  /** What the bytes are, for messages: a path, or "bytes". */
  readonly label: string;
  read(offset: number, length: number, into?: Uint8Array): Uint8Array;
  /** Of a file that stays open: its descriptor, for threads that read at places of their own. */
  readonly fd?: number;
}

/**
 * A source over bytes in memory; reads are plain views, whatever kind of array it is. @throws TypeError where these are
 * no bytes
 */
export function bytesSource(given: Uint8Array, label = "bytes"): ByteSource {
  const bytes = plainBytes(given, label);
  return {
    size: bytes.length,
    label,
    read(offset, length) {
      if (offset < 0 || length < 0 || offset + length > bytes.length) {
        throw new LowbitError(
          "E_ONNX",
          `${label}: expected ${length} bytes at ${offset}, got ${bytes.length} in all. The model is truncated.`,
        );
      }
      return bytes.subarray(offset, offset + length);
    },
  };
}

/**
 * The bytes of one tensor: `length` bytes at `offset` of `source`. `field` is the TensorProto field they belong to (9 =
 * raw_data).
 */
export interface Payload {
  readonly source: ByteSource;
  readonly offset: number;
  readonly length: number;
  readonly field: number;
}

/** TensorProto.raw_data, the field of every payload that this package makes. */
export const RAW_DATA = 9;

const TOKEN_BYTES = 24;

/**
 * The payloads of one model. In the decoded message a payload is stood for by a token of 24 bytes in `raw_data` (16
 * random bytes and an index), so that a message can be moved, copied and encoded without its weights.
 */
export interface PayloadStore {
  /** Registers a payload and returns its token. */
  add(payload: Payload): Uint8Array;
  /** Registers bytes; the store may move them out of memory. */
  addBytes(bytes: Uint8Array): Uint8Array;
  /** The payload that a `raw_data` value stands for, or undefined where it is plain bytes. */
  get(rawData: Uint8Array | undefined): Payload | undefined;
  /** Where `addBytes` puts bytes; the default keeps them in memory. */
  keep: (bytes: Uint8Array) => Payload;
}

export function payloadStore(): PayloadStore {
  // no file knows them, however they are drawn: `crypto` takes 3 MB to load
  const magic = Uint8Array.from({ length: 16 }, () => 256 * Math.random());
  const payloads: Payload[] = [];
  const store: PayloadStore = {
    keep: (bytes) => ({ source: bytesSource(bytes, "new tensor"), offset: 0, length: bytes.length, field: RAW_DATA }),
    add(payload) {
      const token = new Uint8Array(TOKEN_BYTES);
      token.set(magic);
      new DataView(token.buffer).setUint32(16, payloads.length, true);
      payloads.push(payload);
      return token;
    },
    addBytes: (bytes) => store.add(store.keep(bytes)),
    get(rawData) {
      if (rawData === undefined || rawData.length !== TOKEN_BYTES) return undefined;
      for (let i = 0; i < 16; i++) if (rawData[i] !== magic[i]) return undefined;
      return payloads[new DataView(rawData.buffer, rawData.byteOffset).getUint32(16, true)];
    },
  };
  return store;
}
