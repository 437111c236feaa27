// npm run bench -- decode [--seconds S] [--quick]: a 4-bit decoder of 158.6 M weights (decode-model.ts) on this runtime, onnxruntime-node and onnxruntime-web, one thread each and each in
// a process of its own; every round asks all of them, best of rounds. Ratios above 1: this runtime is faster. --quick leaves onnxruntime-web out.
import { fork, type ChildProcess } from "node:child_process";
import { existsSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { decoderModel, QWEN_LIKE } from "./decode-model.ts";
import type { Ask } from "./decode-peer.ts";

interface Answer {
  readonly times: readonly number[];
  readonly ids: readonly number[];
  readonly profile?: Record<string, number>;
  readonly peakMB: number;
  readonly loadMs: number;
  readonly firstMs: number;
}

const answer = (child: ChildProcess): Promise<Answer> =>
  new Promise((resolve, reject) => {
    child.once("message", (message) => resolve(message as Answer));
    child.once("exit", (code) => reject(new Error(`peer ended with ${code}`)));
  });

const CONTEXTS = [256, 1024];
const STEPS = 24;

export async function decode({ seconds, quick }: { seconds: number; quick: boolean }): Promise<object> {
  const folder = mkdtempSync(join(tmpdir(), "lowbit-decode-"));
  const path = process.env.LOWBIT_DECODER ?? join(folder, "decoder.onnx");
  if (!existsSync(path)) writeFileSync(path, decoderModel(QWEN_LIKE));
  const names = ["lowbit", "onnxruntime-node", ...(quick ? [] : ["onnxruntime-web"])];
  const script = fileURLToPath(new URL("decode-peer.ts", import.meta.url));
  const children: ChildProcess[] = [];
  const first = new Map<string, Answer>();
  const best = new Map<string, number[]>();
  const ids = new Map<string, readonly number[]>();
  const shares: number[] = [];
  const missing: string[] = [];
  let peak = new Map<string, number>();
  try {
    for (const name of names) {
      const child = fork(script, [name, path], { execArgv: ["--import", "tsx"] });
      children.push(child);
      first.set(name, await answer(child));
    }
    const asks: Ask[] = [
      { kind: "prefill", context: 256, steps: 0 },
      ...CONTEXTS.map((context): Ask => ({ kind: "decode", context, steps: STEPS })),
    ];
    const begin = performance.now();
    do
      for (const ask of asks)
        for (const [i, name] of names.entries()) {
          const isSlow = name === "onnxruntime-web";
          const key = `${name} ${ask.kind} ${ask.context}`;
          if (isSlow && (best.has(key) || ask.context > 256)) continue;
          children[i].send({ ...ask, steps: isSlow ? 3 : STEPS });
          const got = await answer(children[i]);
          best.set(key, [...(best.get(key) ?? []), ...got.times]);
          if (ask.kind === "decode" && ask.context === 256) ids.set(name, got.ids);
          peak = new Map(peak).set(name, got.peakMB);
          if (got.profile !== undefined) shares.push(overhead(got.profile));
        }
    while (performance.now() - begin < 1000 * seconds);
  } finally {
    for (const child of children) {
      child.removeAllListeners("exit");
      child.kill();
    }
    rmSync(folder, { recursive: true, force: true });
  }
  const ms = (key: string): number => Math.min(...(best.get(key) ?? [NaN]));
  const ratios: Record<string, number> = {};
  for (const name of names.slice(1))
    for (const key of ["decode 256", "decode 1024", "prefill 256"])
      ratios[`${key}: x ${name}`] = ms(`${name} ${key}`) / ms(`lowbit ${key}`);
  ratios["a step over its products and attention"] = Math.min(...shares);
  for (const name of names) {
    ratios[`${name}: load to first token, ms`] = first.get(name)!.firstMs;
    ratios[`${name}: peak memory after loading, MB`] = first.get(name)!.peakMB;
    ratios[`${name}: peak memory, MB`] = peak.get(name) ?? NaN;
  }
  const [own, theirs] = [ids.get("lowbit"), ids.get("onnxruntime-node")];
  if (own !== undefined && theirs !== undefined)
    ratios["greedy tokens equal to onnxruntime-node's"] = own.filter((id, i) => id === theirs[i]).length / own.length;
  const rows = [...best].map(([name, times]) => {
    const sorted = [...times].sort((a, b) => a - b);
    return { name, bestMs: sorted[0], medianMs: sorted[sorted.length >> 1], cpuMs: NaN, runs: sorted.length };
  });
  return { rows, ratios, missing };
}

/** All kernels of a step over its products and attention. */
function overhead(profile: Record<string, number>): number {
  let all = 0;
  let main = 0;
  for (const [operator, ms] of Object.entries(profile)) {
    all += ms;
    if (/MatMul|Joined|GroupQueryAttention/.test(operator)) main += ms;
  }
  return all / main;
}
