// Where models come from beside paths: the network (ranges where the server has them, and the Cache API), Blobs,
// readers of ranges, and external data beside bytes.
import { LowbitError, isLowbitError } from "../../formats/core/errors.ts";
import type { RangeReader } from "../interop/source.ts";
import { bytesSource } from "../onnx/file/source.ts";
import { readModelSource, type OnnxModel } from "../onnx/file/model.ts";
import { checkAborted, type RunOptions } from "../quantize/steps.ts";

const MAGIC = [0x47, 0x47, 0x55, 0x46];
const begins = (head: Uint8Array): boolean => MAGIC.every((byte, i) => head[i] === byte);

/** Whether it begins as GGUF files do. */
export async function isGguf(source: Blob | RangeReader | Uint8Array): Promise<boolean> {
  if (source instanceof Uint8Array) return begins(source);
  if (source instanceof Blob) return begins(new Uint8Array(await source.slice(0, 4).arrayBuffer()));
  return source.size >= 4 && begins(await source.read(0, 4));
}

export const toBlobBytes = async (source: Uint8Array | ArrayBuffer | Blob): Promise<Uint8Array> =>
  source instanceof Uint8Array ? source : new Uint8Array(source instanceof Blob ? await source.arrayBuffer() : source);

/** Bytes that are read at once, so that progress and the signal come in between. */
const CHUNK = 1 << 24;

/** All bytes of a reader. @throws LowbitError E_ABORTED */
export async function readWhole(reader: RangeReader, { signal, onProgress }: RunOptions): Promise<Uint8Array> {
  const out = new Uint8Array(reader.size);
  for (let at = 0; at < reader.size; at += CHUNK) {
    checkAborted(signal, "loadModel");
    out.set(await reader.read(at, Math.min(CHUNK, reader.size - at)), at);
    onProgress?.({ stage: "read", done: Math.min(at + CHUNK, reader.size), total: reader.size });
  }
  return out;
}

/** A model's file out of the network: GGUF by ranges, others whole. */
export type Fetched =
  | { readonly kind: "ranges"; readonly reader: RangeReader }
  | { readonly kind: "whole"; readonly bytes: Uint8Array; readonly beside: (name: string) => Promise<Uint8Array> };

interface FetchOptions extends RunOptions {
  readonly cache?: string;
}

const failed = (url: string, got: string, cause?: unknown): LowbitError =>
  new LowbitError("E_IO", `${url}: expected a file, got ${got}. Check the address and the server's access rules (CORS).`, { cause });

/** A call of the network whose failures are typed. */
async function request(url: string, signal: AbortSignal | undefined, headers?: Record<string, string>): Promise<Response> {
  checkAborted(signal, "loadModel");
  try {
    const response = await fetch(url, { ...(signal && { signal }), ...(headers && { headers }) });
    if (!response.ok) throw failed(url, `${response.status} ${response.statusText}`.trim());
    return response;
  } catch (cause) {
    checkAborted(signal, "loadModel");
    throw isLowbitError(cause) ? cause : failed(url, (cause as Error).message, cause);
  }
}

/** The parts of a body as they come, with progress. */
async function* parts(url: string, response: Response, { signal, onProgress }: RunOptions): AsyncGenerator<Uint8Array> {
  const total = Number(response.headers.get("content-length") ?? 0);
  const reader = response.body!.getReader();
  let done = 0;
  try {
    for (;;) {
      checkAborted(signal, "loadModel");
      const { value, done: ended } = await reader.read();
      if (ended) return;
      done += value.length;
      onProgress?.({ stage: "read", done, total: Math.max(total, done) });
      yield value;
    }
  } catch (cause) {
    checkAborted(signal, "loadModel");
    throw isLowbitError(cause) ? cause : failed(url, (cause as Error).message, cause);
  } finally {
    // a body that is not read to its end keeps its connection
    await reader.cancel().catch(() => undefined);
  }
}

async function collect(url: string, response: Response, options: RunOptions): Promise<Uint8Array> {
  const pieces: Uint8Array[] = [];
  for await (const part of parts(url, response, options)) pieces.push(part);
  const out = new Uint8Array(pieces.reduce((n, part) => n + part.length, 0));
  let at = 0;
  for (const part of pieces) {
    out.set(part, at);
    at += part.length;
  }
  return out;
}

/** The Cache API, where there is one: in browsers. */
interface Store {
  match(url: string): Promise<Response | undefined>;
  put(url: string, response: Response): Promise<void>;
}
const storage = (): { open(name: string): Promise<Store> } | undefined =>
  (globalThis as unknown as { caches?: { open(name: string): Promise<Store> } }).caches;

/** A response kept in the Cache API, from there the next time. */
async function cached(url: string, name: string, options: RunOptions): Promise<Response> {
  const caches = storage();
  if (caches === undefined)
    throw new LowbitError("E_UNSUPPORTED", `cache ${JSON.stringify(name)}: expected the Cache API, got none. Leave { cache } out, or serve the page over https.`); // prettier-ignore
  const store = await caches.open(name);
  const known = await store.match(url);
  if (known !== undefined) return known;
  const response = await request(url, options.signal);
  const source = parts(url, response, options);
  // an error or an end in between leaves no entry: the body that is put does not end
  const body = new ReadableStream<Uint8Array>({
    async pull(controller) {
      try {
        const { value, done } = await source.next();
        if (done) controller.close();
        else controller.enqueue(value);
      } catch (error) {
        controller.error(error);
      }
    },
    cancel: async () => void (await source.return(undefined)),
  });
  try {
    await store.put(url, new Response(body, { headers: response.headers }));
  } catch (cause) {
    checkAborted(options.signal, "loadModel");
    throw isLowbitError(cause) ? cause : failed(url, `no entry in the cache (${(cause as Error).message})`, cause);
  }
  const kept = await store.match(url);
  if (kept === undefined) throw failed(url, "a cache that does not keep it");
  return kept;
}

/** Reads ranges of a file on a server that answers with them. */
function rangesOf(url: string, size: number, { signal }: RunOptions): RangeReader {
  return {
    size,
    async read(at, length) {
      if (length === 0) return new Uint8Array(0);
      const response = await request(url, signal, { range: `bytes=${at}-${at + length - 1}` });
      const bytes = new Uint8Array(await response.arrayBuffer());
      if (response.status !== 206 || bytes.length !== length)
        throw failed(url, `${bytes.length} bytes with status ${response.status} for ${length} from ${at} on`);
      return bytes;
    },
  };
}

const blobRanges = (blob: Blob): RangeReader => ({
  size: blob.size,
  read: async (at, length) => new Uint8Array(await blob.slice(at, at + length).arrayBuffer()),
});

/** @throws LowbitError E_IO, E_ABORTED, E_UNSUPPORTED */
export async function fetchSource(source: string | URL, options: FetchOptions): Promise<Fetched> {
  const url = String(source);
  const beside = async (name: string): Promise<Uint8Array> => {
    const other = new URL(encodeURI(name), url).href;
    const response = options.cache === undefined ? await request(other, options.signal) : await cached(other, options.cache, options);
    return collect(other, response, options);
  };
  if (options.cache !== undefined) {
    const blob = await (await cached(url, options.cache, options)).blob();
    if (await isGguf(blob)) return { kind: "ranges", reader: blobRanges(blob) };
    return { kind: "whole", bytes: await toBlobBytes(blob), beside };
  }
  if (/^https?:/i.test(url)) {
    const head = await request(url, options.signal, { range: "bytes=0-3" });
    const size = Number(/\/(\d+)$/.exec(head.headers.get("content-range") ?? "")?.[1]);
    if (head.status === 206 && Number.isSafeInteger(size)) {
      if (begins(new Uint8Array(await head.arrayBuffer()))) return { kind: "ranges", reader: rangesOf(url, size, options) };
    } else return fromWhole(await collect(url, head, options), beside);
  }
  return fromWhole(await collect(url, await request(url, options.signal), options), beside);
}

function fromWhole(bytes: Uint8Array, beside: (name: string) => Promise<Uint8Array>): Fetched {
  if (!begins(bytes)) return { kind: "whole", bytes, beside };
  return { kind: "ranges", reader: { size: bytes.length, read: (at, n) => Promise.resolve(bytes.subarray(at, at + n)) } };
}

/** Says which external file a model asks for. */
class Wanted extends Error {
  readonly location: string;
  constructor(location: string) {
    super(location);
    this.location = location;
  }
}

/**
 * A model of bytes with its external data, found as it is asked for.
 * @throws LowbitError E_ONNX, E_IO
 */
export async function withExternal(
  bytes: Uint8Array,
  find: (name: string) => Promise<Uint8Array> | undefined,
): Promise<{ readonly model: OnnxModel; readonly files: ReadonlyMap<string, Uint8Array> }> {
  const files = new Map<string, Uint8Array>();
  const sources = new Map<string, ReturnType<typeof bytesSource>>();
  for (;;) {
    try {
      const model = readModelSource(bytesSource(bytes, "model"), (location) => {
        const known = sources.get(location);
        if (known === undefined) throw new Wanted(location);
        return known;
      });
      return { model, files };
    } catch (error) {
      if (!(error instanceof Wanted)) throw error;
      const { location } = error;
      const found = find(location);
      if (found === undefined)
        throw new LowbitError(
          "E_IO",
          `model: expected all tensor data inside it, got some in the external file ${JSON.stringify(location)}. Load it from its path, or give { externalData: { ${JSON.stringify(location)}: bytes } }.`,
        );
      const data = await found;
      files.set(location, data);
      sources.set(location, bytesSource(data, location));
    }
  }
}
