// Worker threads on shared memory (worker.ts is what they run). Workers spin on an offer of their own while jobs follow
// each other, then park in Atomics.wait. A job names a memory, a kernel (its bytes travel in shared memory, so that a
// spinning worker needs no message) and an argument block. Workers are unreferenced: they never keep a process alive. A
// worker that ends makes every later job an error, and where that can be seen from here the one under way too; so does
// one that stops answering or fails. All are ended then: none writes to memory any more.
//
// Other processes want the cores too. The calling thread does the items that no worker has begun and withdraws the job
// from workers that have not shown up; for one that is in the middle of an item it sleeps, so that the worker may have
// this core. A worker that kept a job waiting longer than the thread's own part took gets no job for a while.
import { LowbitError } from "../../../formats/core/errors.ts";
import type { Kernel, Space, WasmFunction, WasmMemory } from "./engine.ts";
import { COLD, controlWords, DONE, FAILED, FINISHED, JOB, LIFE, OFFER, OWN, PARKED, WAITING } from "./worker.ts";

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
  /** Jobs are about to come: wakes parked workers, which spin for them as after a job. */
  wake(): void;
  /** `work`: the kernel's, as this thread runs it. */
  run(space: Space, kernel: Kernel, args: number, panels: number, panelStride: number, work: WasmFunction): void;
  close(): void;
}

/** While a job takes long: how often to look whether its workers live, ms. */
const LOOK_MS = 20;
/**
 * How long the calling thread watches for the end of a job before it sleeps, in reads of a word: some 20 us, more than
 * an item takes.
 */
const WATCH_READS = 10_000;
/**
 * Least time that a job must wait for a worker before that counts as late, ms: more than scheduling takes on an idle
 * machine.
 */
const LATE_MS = 0.2;
/**
 * A late worker gets no jobs for so long, ms; eight times as long at each relapse, up to the second. One jitter costs
 * little, and a core that others keep is left to them after three: each try there may cost a time slice.
 */
const REST_MS = [2, 400] as const;
const RELAPSE = 8;
/** A worker that was not late for so many times its last rest starts over with the shortest. */
const FORGIVEN = 8;

/** Which workers are offered jobs. `now` is a clock in ms. */
export interface Attendance {
  /** Is worker i, from 1, to be offered a job? */
  invited(i: number, now: number): boolean;
  late(i: number, now: number): void;
}

export function attendance(threads: number): Attendance {
  const until = new Float64Array(threads);
  const rest = new Float64Array(threads);
  return {
    invited: (i, now) => now >= until[i],
    late(i, now) {
      rest[i] = now - until[i] > FORGIVEN * rest[i] ? REST_MS[0] : Math.min(REST_MS[1], RELAPSE * rest[i]);
      until[i] = now + rest[i];
    },
  };
}

export interface PoolHooks {
  /**
   * Starts worker `index` (from 1). `onExit` must be called when it ends; `onReady` when it has loaded, where the
   * worker cannot count itself in the control words. `ended` tells a thread that waits, and hears no events, whether
   * the worker whose descriptor is `life` has ended.
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

/** Starts `threads - 1` workers; resolves when all of them answer. @throws LowbitError E_DEVICE, E_UNSUPPORTED */
export async function createPool(options: PoolOptions, hooks: PoolHooks): Promise<Pool> {
  const { threads, spinMs = 0.5, timeoutMs = 10_000 } = options;
  const control = new Int32Array(new SharedArrayBuffer(4 * controlWords(threads)));
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
  const ended = (i: number): boolean => started[i].ended?.(Atomics.load(control, OWN * (i + 1) + LIFE)) === true;
  /** Workers whose end can be seen; known once they live. */
  let visible: readonly boolean[] = [];
  const giveUp = (reason: string): LowbitError => {
    fail(reason);
    return new LowbitError("E_DEVICE", `wasm threads: expected all workers to finish, got: ${reason}. Make another backend.`);
  };
  const wait = sleeper(control);

  const present = attendance(threads);
  /** The offers of the job under way, by worker; 0 where it got none or it was withdrawn. */
  const offers = new Int32Array(threads);
  /** Says which workers are late with the job under way. */
  const late = (now: number): void => {
    for (let i = 1; i < threads; i++)
      if (offers[i] !== 0 && Atomics.load(control, OWN * i + FINISHED) !== offers[i] && Atomics.load(control, OWN * i + COLD) === 0)
        present.late(i, now);
  };

  /**
   * Waits until `taken` workers have finished a job on which this thread spent `ownMs`, and says once which of them are
   * late.
   */
  const finish = (taken: number, ownMs: number): void => {
    let done = Atomics.load(control, DONE);
    for (let i = 0; done < taken && i < WATCH_READS; i++) done = Atomics.load(control, DONE);
    if (done >= taken) return;
    const begin = performance.now();
    const patience = Math.max(LATE_MS, ownMs);
    let deadline = begin + timeoutMs;
    let look = begin + LOOK_MS;
    let told = false;
    while (done < taken) {
      const now = performance.now();
      if (!told && now - begin > patience) {
        told = true;
        late(now);
      }
      if (now > deadline) throw giveUp(`${taken - done} of ${others} workers gave no answer for ${timeoutMs} ms`);
      if (now > look) {
        const gone = started.findIndex((_, i) => visible[i] && ended(i));
        if (gone >= 0) throw giveUp(`worker ${gone + 1} of ${others} ended`);
        look = now + LOOK_MS;
      }
      wait(done, told ? LOOK_MS : patience - (now - begin));
      const before = done;
      done = Atomics.load(control, DONE);
      if (done !== before) deadline = performance.now() + timeoutMs;
    }
  };

  const address = codePlaces();
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
    wake() {
      const now = performance.now();
      for (let i = 1; i < threads; i++)
        if (Atomics.load(control, OWN * i + PARKED) !== 0 && present.invited(i, now)) Atomics.notify(control, OWN * i + OFFER);
    },
    run(space, kernel, args, panels, panelStride, work) {
      pool.check();
      const begin = performance.now();
      // word by word: a job allocates nothing
      control[JOB] = space.index;
      control[JOB + 1] = kernel.id;
      control[JOB + 2] = address(space, kernel);
      control[JOB + 3] = kernel.bytes.length;
      control[JOB + 4] = args;
      control[JOB + 5] = panels;
      control[JOB + 6] = panelStride;
      Atomics.store(control, DONE, 0);
      Atomics.store(control, FAILED, 0);
      for (let i = 1; i < threads; i++) {
        offers[i] = 0;
        if (!present.invited(i, begin)) continue;
        Atomics.store(control, OWN * i + COLD, 0);
        offers[i] = Atomics.load(control, OWN * i + OFFER) + 1;
        Atomics.store(control, OWN * i + OFFER, offers[i]);
        if (Atomics.load(control, OWN * i + PARKED) !== 0) Atomics.notify(control, OWN * i + OFFER);
      }
      try {
        work(args, panels, 0);
      } catch (error) {
        fail("a kernel failed on the calling thread");
        throw error;
      }
      let taken = 0;
      for (let i = 1; i < threads; i++) {
        const offer = offers[i];
        if (offer === 0) continue;
        if (Atomics.compareExchange(control, OWN * i + OFFER, offer, (offer + 1) & 0x7fffffff) === offer) offers[i] = 0;
        else taken++;
      }
      if (Atomics.load(control, DONE) < taken) finish(taken, performance.now() - begin);
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
      for (let i = 1; i < threads; i++) {
        Atomics.store(control, OWN * i + OFFER, -1);
        Atomics.notify(control, OWN * i + OFFER);
      }
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

/**
 * Makes `wait(done, ms)`: sleeps until DONE is no longer `done`, at most `ms`. A page's own thread may not sleep: there
 * it returns after a look or two thousand.
 */
function sleeper(control: Int32Array): (done: number, ms: number) => void {
  let maySleep = true;
  return (done, ms) => {
    if (maySleep) {
      Atomics.store(control, WAITING, 1);
      try {
        Atomics.wait(control, DONE, done, Math.max(0, ms));
        return;
      } catch {
        maySleep = false;
      } finally {
        Atomics.store(control, WAITING, 0);
      }
    }
    for (let i = 0; i < 2000 && Atomics.load(control, DONE) === done; i++);
  };
}

/** Where workers find the bytes of a kernel: scratch space of a memory, written at the kernel's first job there. */
function codePlaces(): (space: Space, kernel: Kernel) => number {
  const placed = new WeakMap<Space, Map<Kernel, number>>();
  return (space, kernel) => {
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
}
