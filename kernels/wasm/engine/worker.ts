// What a worker of the pool (pool.ts) runs, as text, because a library file cannot know how it will be bundled; and the
// words of shared memory through which a pool and its workers speak. A job is offered to each worker on a word of its
// own. The worker takes the offer, or the calling thread, done with all items, withdraws it: one compare and exchange
// decides. Nobody ever waits for a worker that has not begun.

/** Words that all threads share. */
export const DONE = 0;
export const FAILED = 1;
/** Not 0: the calling thread sleeps on DONE. */
export const WAITING = 2;
/** Memory, kernel id, address and length of its bytes, arguments, panels, panel stride. */
export const JOB = 8;
/**
 * From here on each worker has words of its own, in cache lines of its own; worker i, from 1, has those from i * OWN
 * on.
 */
export const OWN = 32;
/**
 * Odd: a job is offered. Made even by the worker that takes it or the thread that withdraws it, whoever comes first.
 * Negative: the end. The number starts over before it would turn negative, some 2^30 jobs on.
 */
export const OFFER = 0;
/** The worker sleeps on its offer. */
export const PARKED = 1;
/** The offer whose job it finished last. */
export const FINISHED = 2;
/** It compiled a kernel for that job. */
export const COLD = 3;
/**
 * In Node: a file descriptor that the engine closes when the worker ends, however it ends; -1 where it could open none.
 */
export const LIFE = 4;

export const controlWords = (threads: number): number => OWN * threads;

/**
 * Source of a worker. It gets memories synchronously from a port in Node, by a message before the first job in
 * browsers.
 */
export const workerSource = (node: boolean): string => `
"use strict";
${node ? 'const { parentPort, workerData, receiveMessageOnPort } = require("node:worker_threads");' : ""}
const memories = [];
const instances = new Map();
function loop(control, index, poll, spinMs) {
  const own = ${OWN} * index;
  for (;;) {
    let offer = Atomics.load(control, own);
    if (offer % 2 === 0) {
      const idle = offer;
      let until = performance.now() + spinMs;
      spin: for (;;) {
        for (let i = 0; i < 2000; i++) {
          offer = Atomics.load(control, own);
          if (offer !== idle) break spin;
        }
        if (performance.now() > until) {
          Atomics.store(control, own + ${PARKED}, 1);
          Atomics.wait(control, own, idle);
          Atomics.store(control, own + ${PARKED}, 0);
          until = performance.now() + spinMs;
        }
      }
    }
    if (offer < 0) return;
    if (offer % 2 === 0 || Atomics.compareExchange(control, own, offer, (offer + 1) & 0x7fffffff) !== offer) continue;
    try {
      const [memory, kernel, bytes, length, args, panels, stride] = control.subarray(${JOB}, ${JOB + 7});
      while (memories[memory] === undefined) if (!poll()) throw new Error("no memory");
      const key = memory + ":" + kernel;
      let work = instances.get(key);
      if (work === undefined) {
        Atomics.store(control, own + ${COLD}, 1);
        const code = new Uint8Array(memories[memory].buffer, bytes >>> 0, length).slice();
        work = new WebAssembly.Instance(new WebAssembly.Module(code), { m: { m: memories[memory] } }).exports.work;
        instances.set(key, work);
      }
      work(args, panels + index * stride, index);
    } catch (e) {
      Atomics.store(control, ${FAILED}, 1);
    }
    Atomics.store(control, own + ${FINISHED}, offer);
    Atomics.add(control, ${DONE}, 1);
    if (Atomics.load(control, ${WAITING}) !== 0) Atomics.notify(control, ${DONE});
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
Atomics.store(control, ${OWN} * index + ${LIFE}, life);
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
