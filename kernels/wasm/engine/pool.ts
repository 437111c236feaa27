// Worker threads on shared memory. Workers spin on a sequence number while jobs follow each other, then park in Atomics.wait. A job names a
// memory, a kernel (its bytes travel in shared memory, so that a spinning worker needs no message) and an argument block. Workers are
// unreferenced: they never keep a process alive. A worker that ends makes every later job an error, and where that can be seen from here the one under way too; so
// does one that stops answering or fails. All are ended then: none writes to memory any more.
import { LowbitError } from "../../../formats/core/errors.ts";
import type { Kernel, Space, WasmMemory } from "./engine.ts";

/** What a pool needs of a worker: node:worker_threads or a Web Worker. */
export interface WorkerLike {
  postMessage(message: unknown): void;
  terminate(): unknown;
}

export interface Pool {
  /** The calling thread included. */
  readonly threads: number;
  /** Can memories be added after the start? Browsers' spinning workers read no messages. */
  readonly manyMemories: boolean;
  addMemory(index: number, memory: WasmMemory): void;
  /** @throws LowbitError E_DISPOSED, E_DEVICE where no job may start */
  check(): void;
  run(space: Space, kernel: Kernel, args: number, panels: number, panelStride: number, own: () => void): void;
  close(): void;
}

// control words
const SEQUENCE = 0;
const DONE = 1;
const PARKED = 2;
const FAILED = 3;
const JOB = 8; // memory, kernel id, bytes address, bytes length, args, panels, panel stride
const WORDS = 32;
/** After them, for each worker in Node: a file descriptor that the engine closes when the worker ends, however it ends; -1 where it could open none. */
const LIFE = WORDS;
/** While a job takes long: how often to look whether its workers live, ms. */
const LOOK_MS = 20;

/**
 * Source of a worker. `receive` is how it gets memories: synchronously from a port in Node, by messages before the first job in browsers.
 * It is text, because a library file cannot know how it will be bundled.
 */
export const workerSource = (node: boolean): string => `
"use strict";
${node ? 'const { parentPort, workerData, receiveMessageOnPort } = require("node:worker_threads");' : ""}
const memories = [];
const instances = new Map();
function loop(control, index, poll, spinMs) {
  let seen = 0;
  for (;;) {
    let now = Atomics.load(control, ${SEQUENCE});
    if (now === seen) {
      const until = performance.now() + spinMs;
      spin: for (;;) {
        for (let i = 0; i < 2000; i++) {
          now = Atomics.load(control, ${SEQUENCE});
          if (now !== seen) break spin;
        }
        if (performance.now() > until) {
          Atomics.add(control, ${PARKED}, 1);
          Atomics.wait(control, ${SEQUENCE}, seen);
          Atomics.sub(control, ${PARKED}, 1);
        }
      }
    }
    seen = now;
    if (now < 0) return;
    try {
      const [memory, kernel, bytes, length, args, panels, stride] = control.subarray(${JOB}, ${JOB + 7});
      while (memories[memory] === undefined) if (!poll()) throw new Error("no memory");
      const key = memory + ":" + kernel;
      let work = instances.get(key);
      if (work === undefined) {
        const code = new Uint8Array(memories[memory].buffer, bytes >>> 0, length).slice();
        work = new WebAssembly.Instance(new WebAssembly.Module(code), { m: { m: memories[memory] } }).exports.work;
        instances.set(key, work);
      }
      work(args, panels + index * stride, index);
    } catch (e) {
      Atomics.store(control, ${FAILED}, 1);
    }
    Atomics.add(control, ${DONE}, 1);
  }
}
${
  node
    ? `const { control, index, port, spinMs } = workerData;
const poll = () => {
  const got = receiveMessageOnPort(port);
  if (got === undefined) return false;
  memories[got.message.index] = got.message.memory;
  return true;
};
let life = -1;
try { life = require("node:fs").openSync(require("node:os").devNull); } catch {}
Atomics.store(control, ${LIFE} + index, life);
Atomics.add(control, ${DONE}, 1);
loop(control, index, poll, spinMs);
process.exit(0);`
    : `self.onmessage = (event) => {
  if (event.data === 0) return void self.postMessage(0);
  const { control, index, memory, spinMs } = event.data;
  memories[0] = memory;
  loop(control, index, () => false, spinMs);
  self.close();
};`
}
`;

export interface PoolHooks {
  /**
   * Starts worker `index` (from 1). `onExit` must be called when it ends; `onReady` when it has loaded, where the worker cannot count itself in the
   * control words. `ended` tells a thread that waits, and hears no events, whether the worker whose descriptor is `life` has ended.
   */
  start(
    index: number,
    control: Int32Array,
    spinMs: number,
    onExit: () => void,
    onReady: () => void,
  ): { worker: WorkerLike; send(index: number, memory: WasmMemory): void; ended?(life: number): boolean };
  readonly manyMemories: boolean;
}

export interface PoolOptions {
  readonly threads: number;
  /** How long a worker spins before it parks, ms. */
  readonly spinMs?: number;
  /** Without any progress for this long a job is given up, ms. */
  readonly timeoutMs?: number;
}

/** Starts `threads - 1` workers; resolves when all of them answer. @throws LowbitError E_DEVICE */
export async function createPool(options: PoolOptions, hooks: PoolHooks): Promise<Pool> {
  const { threads, spinMs = 0.5, timeoutMs = 10_000 } = options;
  const control = new Int32Array(new SharedArrayBuffer(4 * (WORDS + threads)));
  const others = threads - 1;
  let dead: string | null = null;
  let closed = false;
  const started = Array.from({ length: others }, (_, i) =>
    hooks.start(
      i + 1,
      control,
      spinMs,
      () => {
        if (!closed) dead ??= `worker ${i + 1} of ${others} ended`;
      },
      () => void Atomics.add(control, DONE, 1),
    ),
  );
  /** No job may start any more: workers may still be at the last one, whose memory others will use. */
  const fail = (reason: string): void => {
    dead ??= reason;
    for (const { worker } of started) void worker.terminate();
  };
  const ended = (i: number): boolean => started[i].ended?.(Atomics.load(control, LIFE + i + 1)) === true;
  /** Workers whose end can be seen; known once they live. */
  let visible: readonly boolean[] = [];
  const placed = new WeakMap<Space, Map<Kernel, number>>();
  /** Where workers find the bytes of a kernel. */
  const codeAddress = (space: Space, kernel: Kernel): number => {
    let addresses = placed.get(space);
    if (addresses === undefined) placed.set(space, (addresses = new Map()));
    let address = addresses.get(kernel);
    if (address === undefined) {
      address = space.scratch(`kernel ${kernel.id}`, kernel.bytes.length);
      new Uint8Array(space.buffer, address, kernel.bytes.length).set(kernel.bytes);
      addresses.set(kernel, address);
    }
    return address;
  };
  const pool: Pool = {
    threads,
    manyMemories: hooks.manyMemories,
    addMemory(index, memory) {
      for (const { send } of started) send(index, memory);
    },
    check() {
      if (closed) throw new LowbitError("E_DISPOSED", "wasm threads: expected a live backend, got one that was disposed. Make another.");
      if (dead !== null)
        throw new LowbitError("E_DEVICE", `wasm threads: expected ${others} live workers, got: ${dead}. Make another backend.`);
    },
    run(space, kernel, args, panels, panelStride, own) {
      pool.check();
      const bytes = codeAddress(space, kernel);
      control.set([space.index, kernel.id, bytes, kernel.bytes.length, args, panels, panelStride], JOB);
      Atomics.store(control, DONE, 0);
      Atomics.store(control, FAILED, 0);
      // negative means the end: the number starts over before that, some 2^31 jobs on
      Atomics.store(control, SEQUENCE, (Atomics.load(control, SEQUENCE) + 1) & 0x7fffffff);
      if (Atomics.load(control, PARKED) > 0) Atomics.notify(control, SEQUENCE);
      try {
        own();
      } catch (error) {
        fail("a kernel failed on the calling thread");
        throw error;
      }
      let done = Atomics.load(control, DONE);
      let spins = 0;
      let deadline = 0;
      let look = 0;
      const giveUp = (reason: string): LowbitError => {
        fail(reason);
        return new LowbitError("E_DEVICE", `wasm threads: expected all workers to finish, got: ${reason}. Make another backend.`);
      };
      while (done < others) {
        if (++spins % 4096 === 0) {
          const now = performance.now();
          if (deadline === 0) {
            deadline = now + timeoutMs;
            look = now + LOOK_MS;
          } else if (now > deadline) throw giveUp(`${others - done} of ${others} workers gave no answer for ${timeoutMs} ms`);
          else if (now > look) {
            const gone = started.findIndex((_, i) => visible[i] && ended(i));
            if (gone >= 0) throw giveUp(`worker ${gone + 1} of ${others} ended`);
            look = now + LOOK_MS;
          }
          // a worker that was parked between our look and its wait
          Atomics.notify(control, SEQUENCE);
        }
        const now = Atomics.load(control, DONE);
        if (now !== done) deadline = 0;
        done = now;
      }
      if (Atomics.load(control, FAILED) !== 0) {
        fail("a worker failed");
        throw new LowbitError(
          "E_DEVICE",
          "wasm threads: expected all workers to finish, got a failure in one of them. Make another backend.",
        );
      }
    },
    close() {
      if (closed) return;
      closed = true;
      Atomics.store(control, SEQUENCE, -1);
      Atomics.notify(control, SEQUENCE);
    },
  };
  const limit = performance.now() + timeoutMs;
  while (Atomics.load(control, DONE) < others) {
    if (dead !== null || performance.now() > limit) {
      closed = true;
      for (const { worker } of started) void worker.terminate();
      throw new LowbitError(
        "E_DEVICE",
        `wasm threads: expected ${others} workers to start, got ${Atomics.load(control, DONE)}. Use threads: 1.`,
      );
    }
    await new Promise((resolve) => setTimeout(resolve, 1));
  }
  Atomics.store(control, DONE, 0);
  visible = started.map((worker, i) => worker.ended !== undefined && !ended(i));
  return pool;
}
