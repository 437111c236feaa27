// New tensors of one operation: in memory up to a budget, then in a temporary file beside the output.
import { bytesSource, RAW_DATA } from "../source.ts";
import type { ByteSource, Payload } from "../source.ts";
import { disk } from "../../../files/calls.ts";
import { writeAll } from "../../../files/commit.ts";
import { outputFolder } from "../../../files/outputs.ts";
import { readAll } from "./read.ts";
import type { Staging } from "../../../files/staging.ts";
import { openStaging } from "../../../files/staging.ts";

export interface SpillFile {
  keep: (bytes: Uint8Array) => Payload;
  close: () => void;
}

/** Tensors below this stay in memory whatever the budget. */
const SPILL_MIN = 1 << 16;

export function spillFile(target: string, budget: number): SpillFile {
  let used = 0;
  let size = 0;
  let opened: { staging: Staging; fd: number; source: ByteSource } | undefined;
  function open(): NonNullable<typeof opened> {
    const staging = openStaging(outputFolder(target));
    try {
      const fd = staging.create("new");
      const label = staging.file("new");
      const source: ByteSource = {
        get size() {
          return size;
        },
        label,
        read(at, length, into) {
          const out = into !== undefined && into.length >= length ? into.subarray(0, length) : new Uint8Array(length);
          readAll(fd, out, length, at, label);
          return out;
        },
      };
      return { staging, fd, source };
    } catch (error) {
      staging.remove();
      throw error;
    }
  }
  return {
    keep(bytes) {
      used += bytes.length;
      if (used <= budget || bytes.length < SPILL_MIN) {
        return { source: bytesSource(bytes, "new tensor"), offset: 0, length: bytes.length, field: RAW_DATA };
      }
      opened ??= open();
      writeAll(opened.fd, bytes, opened.source.label);
      const offset = size;
      size += bytes.length;
      return { source: opened.source, offset, length: bytes.length, field: RAW_DATA };
    },
    close() {
      if (opened === undefined) return;
      try {
        disk.close(opened.fd);
      } catch {
        // The file goes away in any case.
      }
      opened.staging.remove();
      opened = undefined;
    },
  };
}
