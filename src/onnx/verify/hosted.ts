// Sessions behind requests: the other end runs `host` (host.ts), in a child process or in a page.
import { LowbitError } from "../../../formats/core/errors.ts";
import type { InputMetadata } from "./feeds.ts";
import type { OutputTensor, RuntimeSession } from "./runtimes.ts";

export interface Channel {
  /** @throws Error as the runtime says it, CrashError where its process ended */
  request(op: string, ...args: readonly unknown[]): Promise<unknown>;
  stop(): Promise<void>;
}

export interface OpenReply {
  readonly id: number;
  readonly ms: number;
  readonly inputNames: readonly string[];
  readonly outputNames: readonly string[];
  readonly inputs?: readonly InputMetadata[];
  readonly outputs?: readonly InputMetadata[];
}

export function hostedSession(channel: Channel, reply: OpenReply): RuntimeSession {
  return {
    inputNames: reply.inputNames,
    outputNames: reply.outputNames,
    inputs: reply.inputs,
    outputs: reply.outputs,
    loadMs: reply.ms,
    async run(feeds, fetches) {
      const { ms, outputs } = (await channel.request("run", reply.id, Object.entries(feeds), fetches)) as {
        ms: number;
        outputs: [string, OutputTensor | null][];
      };
      return { ms, outputs: new Map(outputs) };
    },
    close: async () => void (await channel.request("close", reply.id)),
  };
}

/** The first request. @throws LowbitError E_RUNTIME where the runtime does not start */
export async function hello(channel: Channel, what: string, remedy: string): Promise<unknown> {
  try {
    return await channel.request("hello");
  } catch (cause) {
    await channel.stop();
    throw new LowbitError("E_RUNTIME", `verify: expected ${what} to start, got ${(cause as Error).message}. ${remedy}`, { cause });
  }
}
