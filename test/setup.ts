/**
 * A test that blocks its process (a wait that nobody ends, a native call that never returns) is beyond vitest's time
 * limits, which are timers of the blocked thread: the whole run hangs and nothing names the file. This thread outlives
 * it: past the limit it prints the file, the test and the stack of the main thread, then ends the process.
 */
import fc from "fast-check";
import { afterAll, beforeEach, expect } from "vitest";
import { Worker } from "node:worker_threads";

const LIMIT_MS = Number(process.env.TEST_FILE_LIMIT_MS ?? 8 * 60_000);
const NAME_BYTES = 1024;

const watch = `
const { workerData: { shared, file, limit } } = require("node:worker_threads");
const { Session } = require("node:inspector");
const { writeSync } = require("node:fs");
const say = (text) => { try { writeSync(2, text + "\\n"); } catch { /* nobody reads: the process still has to end */ } };
setTimeout(() => {
  const bytes = new Uint8Array(shared).slice();
  say("WATCHDOG: " + file + " ran for " + limit / 1000 + " s; in test: " + new TextDecoder().decode(bytes).replace(/\\0+$/, ""));
  try {
    const session = new Session();
    session.connectToMainThread();
    const urls = new Map();
    session.on("Debugger.scriptParsed", ({ params }) => urls.set(params.scriptId, params.url));
    session.on("Debugger.paused", ({ params }) => {
      for (const { functionName, url, location } of params.callFrames) {
        const at = (urls.get(location.scriptId) || url) + ":" + (location.lineNumber + 1);
        say("    at " + (functionName || "(anonymous)") + " " + at);
      }
    });
    session.post("Debugger.enable");
    session.post("Debugger.pause");
  } catch (error) { say("    (no stack: " + error + ")"); }
  setTimeout(() => process.kill(process.pid, "SIGKILL"), 5000);
}, limit);
`;

const file = expect.getState().testPath ?? "?";
const shared = new SharedArrayBuffer(NAME_BYTES);
const watcher = new Worker(watch, { eval: true, workerData: { shared, file, limit: LIMIT_MS }, execArgv: [] });
watcher.unref();
// files of the folders that share a process (vitest.config.ts) follow one another in it
afterAll(() => void watcher.terminate());

beforeEach(({ task }) => {
  const text = new TextEncoder().encode(task.name).subarray(0, NAME_BYTES);
  const bytes = new Uint8Array(shared);
  bytes.fill(0);
  bytes.set(text);
});

/**
 * Large arrays are compared as bytes first: `equals` walks them key by key, a second for 65,536 numbers. Bytes that
 * differ say nothing (0 and -0 aside, there are NaNs of other bits): then it walks.
 */
function sameBytes(a: unknown, b: unknown): boolean | undefined {
  if (!ArrayBuffer.isView(a) || !ArrayBuffer.isView(b) || a.constructor !== b.constructor || a.byteLength !== b.byteLength)
    return undefined;
  const [x, y] = [a, b].map((v) => Buffer.from(v.buffer as ArrayBuffer, v.byteOffset, v.byteLength));
  return x.equals(y) ? true : undefined;
}
// once for files that share a process
if ((globalThis as { __sameBytes?: boolean }).__sameBytes !== true) {
  (globalThis as { __sameBytes?: boolean }).__sameBytes = true;
  expect.addEqualityTesters([sameBytes]);
}

// One seed, so that a run can be repeated (FC_SEED=7 or FC_SEED=$RANDOM draws others); a counterexample that takes long
// to shrink is printed as it is, where shrinking without end would hang the run.
fc.configureGlobal({ seed: Number(process.env.FC_SEED ?? 1), interruptAfterTimeLimit: 240_000, markInterruptAsFailure: true });
