// Values between the stages of a runner: in memory up to a budget, then in a file in the system's temporary folder, so
// that calibration data of any size need the memory of one batch. A value that went to disk is read when it is asked
// for. Node only.
import { disk, fileConstants } from "../../files/calls.ts";
import { writeAll } from "../../files/commit.ts";
import { readUpTo } from "../../files/open.ts";
import type { RuntimeTensor } from "../session.ts";
import type { FeedTensor } from "../verify/feeds.ts";
import { temporaryFolder } from "./node.ts";

export interface Keeper {
  /** Keeps a value; call what it returns to have it again. */
  put(value: RuntimeTensor): () => FeedTensor;
  /** Drops all values. */
  close(): void;
}

/** Values of all stages together that stay in memory. */
const MEMORY = 128 << 20;

type Bytes = ArrayBufferView<ArrayBuffer> & { readonly BYTES_PER_ELEMENT: number; readonly length: number };

const isBytes = (data: unknown): data is Bytes => ArrayBuffer.isView(data) && "BYTES_PER_ELEMENT" in data;

/** What a value takes of the memory; strings count eight bytes each. */
export const heldBytes = ({ data }: RuntimeTensor): number => (isBytes(data) ? data.byteLength : 8 * (data as readonly unknown[]).length);

/** @param budget bytes in memory before the file begins */
export function keeper(budget: number = MEMORY): Keeper {
  let used = 0;
  let end = 0;
  let opened: { readonly fd: number; readonly path: string; remove(): void } | undefined;
  const open = (): NonNullable<typeof opened> => {
    const folder = temporaryFolder("lowbit-values-");
    const path = folder.file("values");
    const { O_RDWR, O_CREAT, O_EXCL } = fileConstants();
    return { fd: disk.open(path, O_RDWR | O_CREAT | O_EXCL, 0o600), path, remove: () => folder.remove() };
  };
  return {
    put(value) {
      const { data, dims, type } = value;
      if (!isBytes(data) || used + data.byteLength <= budget) {
        used += heldBytes(value);
        return () => value as FeedTensor;
      }
      const { fd, path } = (opened ??= open());
      const { byteLength, constructor } = data;
      const at = end;
      writeAll(fd, new Uint8Array(data.buffer, data.byteOffset, byteLength), path, at);
      end += byteLength;
      return () => {
        const bytes = new Uint8Array(byteLength);
        readUpTo(fd, bytes, byteLength, at, path);
        return { type, dims, data: new (constructor as new (buffer: ArrayBuffer) => FeedTensor["data"])(bytes.buffer) };
      };
    },
    close() {
      used = 0;
      if (opened === undefined) return;
      disk.close(opened.fd);
      opened.remove();
      opened = undefined;
    },
  };
}
