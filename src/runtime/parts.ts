// A session of parts that follow each other: sessions of this runtime, and of onnxruntime for the operators that are
// missing.
import { LowbitError, isLowbitError } from "../../formats/core/errors.ts";
import { writeModelBytes } from "../onnx/file/io.ts";
import type { OnnxModel } from "../onnx/file/model.ts";
import { isNative } from "../onnx/runtime-tensor.ts";
import { partition, type Part } from "./compile/partition.ts";
import { foreignSession, importRuntime, type OnnxRuntime } from "./foreign.ts";
import { presentOf } from "./machine/sequence.ts";
import { checkFetches, checkNames, describe, disposed, type Described, type DeviceSession, type Session } from "./session.ts";
import type { RuntimeTensor } from "./value.ts";

interface Opened extends Omit<Part, "model"> {
  readonly label: string;
  readonly session: Session;
  ms: number;
}

interface PartsInit {
  /** Operators that the runtime does not have. */
  readonly missing: readonly string[];
  readonly runtime: OnnxRuntime;
  readonly profile: boolean;
  /** Whether products run on a device, faster than any processor's. */
  readonly device: boolean;
  /** Opens a part that runs here. */
  readonly open: (model: OnnxModel) => Promise<Session | DeviceSession>;
}

interface Whole {
  readonly fallback: "onnxruntime" | OnnxRuntime;
  readonly source: string | Uint8Array;
  /** External data beside bytes. */
  readonly files: ReadonlyMap<string, Uint8Array> | undefined;
  /** Whether onnxruntime gets models whole too. */
  readonly whole: boolean;
}

/**
 * A session of a model with operators that are missing: in parts, or as a whole in onnxruntime; null where it would be
 * whole and `whole` is false.
 * @throws LowbitError E_RUNTIME, E_ABORTED
 */
export async function fallbackSession(
  model: OnnxModel,
  described: Described,
  init: Omit<PartsInit, "runtime">,
  { fallback, source, files, whole }: Whole,
): Promise<Session | null> {
  const runtime = fallback === "onnxruntime" ? await importRuntime(init.missing) : fallback;
  const inParts = await sessionOfParts(model, described, { ...init, runtime });
  return inParts ?? (whole ? foreignSession(described, source, init.missing, runtime, { files }) : null);
}

/**
 * A session of a model in parts; null where it is better as a whole in onnxruntime.
 * @param shares see `partition`
 * @throws LowbitError E_ABORTED
 */
export async function sessionOfParts(
  model: OnnxModel,
  described: Described,
  init: PartsInit,
  shares?: readonly [number, number],
): Promise<Session | null> {
  const parts: Opened[] = [];
  try {
    for (const { model: part, foreign, operators } of partition(model, !init.device && isNative(init.runtime as object), shares) ?? []) {
      const label = `model part ${parts.length + 1} (${operators.join(", ")})`;
      const session = foreign
        ? await foreignSession(describe(part), writeModelBytes(part), operators, init.runtime, { label })
        : ((await init.open(part)) as Session);
      parts.push({ foreign, operators, label, session, ms: 0 });
    }
  } catch (error) {
    for (const { session } of parts) await session.release();
    // what either runtime makes of a part must not keep the other from the whole
    if (!isLowbitError(error) || error.code === "E_ABORTED" || shares !== undefined) throw error;
    return null;
  }
  return parts.length === 0 ? null : joined(described, parts, init);
}

function joined(described: Described, parts: readonly Opened[], { missing, profile }: PartsInit): Session {
  const { optional: _, shapeless: __, agree: ___, ...names } = described;
  let released = false;
  let last: Promise<unknown> = Promise.resolve();
  const checkLive = (): void => {
    if (released) throw disposed();
  };
  const answer = async (
    feeds: Readonly<Record<string, RuntimeTensor>>,
    fetches: readonly string[],
  ): Promise<Record<string, RuntimeTensor>> => {
    const wanted = new Set(fetches);
    const steps: { readonly part: Opened; readonly makes: readonly string[] }[] = [];
    for (const part of [...parts].reverse()) {
      const makes = part.session.outputNames.filter((name) => wanted.has(name));
      if (makes.length === 0) continue;
      steps.unshift({ part, makes });
      for (const name of part.session.inputNames) wanted.add(name);
    }
    const values = new Map(Object.entries(feeds));
    for (const { part, makes } of steps) {
      checkLive();
      const start = performance.now();
      const given = part.session.inputNames.map((name) => [name, values.get(name)!] as const);
      const results = await part.session.run(Object.fromEntries(given), makes);
      part.ms += performance.now() - start;
      for (const name of makes) values.set(name, results[name]);
    }
    // an input that is an output leaves as the caller's own
    const copy = ({ type, dims, data }: RuntimeTensor): RuntimeTensor => ({ type, dims: [...dims], data: (data as string[]).slice() });
    return Object.fromEntries(fetches.map((name) => [name, Object.hasOwn(feeds, name) ? copy(feeds[name]) : values.get(name)!]));
  };
  return {
    ...names,
    async run(feeds, fetches = names.outputNames) {
      checkLive();
      checkFetches(names.outputNames, fetches);
      checkNames(described, feeds);
      const turn = last.then(() => answer(feeds, fetches));
      last = turn.catch(() => undefined);
      return turn;
    },
    explain() {
      const own = parts.filter(({ foreign }) => !foreign).map(({ session }) => session.explain());
      return {
        runtime: "lowbit",
        missing,
        steps: parts.flatMap(({ foreign, session, label, operators, ms }) =>
          foreign
            ? [{ name: label, operator: operators.join(", "), kernel: "onnxruntime", ...(profile ? { ms } : {}) }]
            : session.explain().steps,
        ),
        folded: own.reduce((sum, { folded }) => sum + folded, 0),
        dead: own.reduce((sum, { dead }) => sum + dead, 0),
      };
    },
    decoder(options) {
      checkLive();
      const outputs = new Set(names.outputNames);
      const caches = names.inputNames.filter((name) => presentOf(name, outputs) !== undefined);
      const core = parts.find(({ session }) => caches.some((name) => session.inputNames.includes(name)));
      const isWhole =
        core !== undefined &&
        !core.foreign &&
        caches.every((name) => core.session.inputNames.includes(name) && core.session.outputNames.includes(presentOf(name, outputs)!)) &&
        core.session.inputNames.every((name) => names.inputNames.includes(name));
      if (isWhole) return core.session.decoder(options);
      const others = parts.filter(({ foreign }) => foreign).map(({ label }) => label);
      throw new LowbitError(
        "E_UNSUPPORTED",
        `decoder: expected tokens, caches and what lies between them in one part that runs here, got a model with ${others.join("; ")} in onnxruntime. Call run with the caches as feeds.`,
      );
    },
    async release() {
      if (released) return;
      released = true;
      await last;
      for (const { session } of parts) await session.release();
    },
  };
}
