// llama.cpp's own quantized files: its llama_model_quantize, from the library that node-llama-cpp ships (bench/peers),
// called by a small program in C (bench/peers/llama-quantize.c) that is compiled here.
import { execFileSync } from "node:child_process";
import { mkdirSync, readdirSync, rmSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { quantizeGguf, writeGguf, type FloatModel } from "../src/interop/index.ts";

/** llama_ftype of llama.h. */
const FTYPES: Readonly<Record<string, number>> = {
  f16: 1, q4_0: 2, q8_0: 7, q2_k: 10, q3_k: 12, q4_k: 15, q5_k: 17, q6_k: 18, iq4_xs: 30, mxfp4: 38,
}; // prettier-ignore

const peers = fileURLToPath(new URL("./peers/", import.meta.url));

function program(folder: string): string {
  const lib = join(
    peers,
    "node_modules/@node-llama-cpp",
    `${process.platform}-${process.arch}`,
    "bins",
    `${process.platform}-${process.arch}`,
  );
  const llama = readdirSync(lib).find((name) => /^libllama\..*so/.test(name));
  if (llama === undefined) throw new Error(`llama-quantize: expected libllama.so in ${lib}, found none.`);
  const out = join(folder, "llama-quantize");
  const flags = [`-L${lib}`, `-Wl,-rpath,${lib}`, "-Wl,--allow-shlib-undefined"];
  execFileSync("cc", [join(peers, "llama-quantize.c"), "-o", out, join(lib, llama), ...flags], { stdio: "pipe" });
  return out;
}

/**
 * Files of a model in each type as llama-quantize writes them (`--pure`), by type; a type that it refuses is absent.
 * `missing` is told what could not be made and why.
 */
export async function llamaFiles(
  model: FloatModel,
  types: readonly string[],
  folder: string,
  missing: (why: string) => void,
): Promise<Map<string, string>> {
  const files = new Map<string, string>();
  const own = join(folder, "llama");
  mkdirSync(own);
  const source = join(own, "f32.gguf");
  try {
    const quantize = program(own);
    await writeGguf(source, quantizeGguf(model, { type: "f32", pure: true }));
    for (const type of types) {
      const path = join(own, `${type}.gguf`);
      try {
        execFileSync(quantize, [source, path, String(FTYPES[type])], { stdio: "pipe" });
        files.set(type, path);
      } catch (error) {
        missing(`llama-quantize ${type}: ${(error as { stderr?: Buffer }).stderr?.toString().trim().split("\n").at(-1) ?? String(error)}`);
      }
    }
  } catch (error) {
    missing(
      `llama-quantize: ${String(error instanceof Error ? error.message : error).split("\n")[0]} (needs a C compiler and bench/peers)`,
    );
  }
  rmSync(source, { force: true });
  return files;
}
