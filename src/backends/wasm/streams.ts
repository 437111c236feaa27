// How many blocks of memory kernels of a backend read side by side.
import type { Space } from "../../../kernels/wasm/engine/engine.ts";
import type { Runtime } from "../../../kernels/wasm/engine/runtime.ts";
import { measureStreams, type Streams } from "../../../kernels/wasm/engine/streams.ts";

const measured = new WeakMap<Runtime, Streams>();

/** Measured once for a backend, when its memory is larger than caches; before that 2, which is right in caches. */
export function streamsOf(runtime: Runtime, space: Space): Streams {
  const known = measured.get(runtime);
  if (known !== undefined) return known;
  const found = measureStreams(space, runtime.shared);
  if (found !== null) measured.set(runtime, found);
  return found ?? 2;
}
