// Files as they come: kinds of arrays, files that are no model, pipes and devices, links, names, permissions, data that
// changes meanwhile.
import { execFileSync } from "node:child_process";
import {
  appendFileSync,
  chmodSync,
  existsSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  readdirSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { runInNewContext } from "node:vm";
import { gzipSync } from "node:zlib";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import type { OnnxFile } from "../../src/onnx/index.ts";
import { configFile, inspectModel, quantizeModel, readFeeds, readModel, readModelBytes, writeModel } from "../../src/onnx/index.ts";
import { readFloats } from "../../src/onnx/file/values.ts";
import { encode, external, matmulModel, raw, typed, weights } from "./build.ts";
import { quantizeModelBytes } from "./kept.ts";

const values = weights(64 * 32);
const valueBytes = new Uint8Array(values.buffer);
const inside = (): Uint8Array => encode(matmulModel(raw("w", [64, 32], values), 64, 32));
const refer = (entries: Record<string, string>): Uint8Array => encode(matmulModel(external("w", [64, 32], entries), 64, 32));

let folder = "";
const at = (...names: string[]): string => join(folder, ...names);
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "lowbit-files-"));
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

const firstWeight = (model: { proto: OnnxFile["proto"] } & Parameters<typeof readFloats>[0]): Float32Array =>
  readFloats(model, model.proto.graph!.initializer[0]);

/** An ArrayBuffer that can grow; TypeScript's library for Node 20 does not know the second argument. */
const resizable = (length: number): ArrayBuffer =>
  new (ArrayBuffer as unknown as new (length: number, options: object) => ArrayBuffer)(length, { maxByteLength: length + 99 });

describe("kinds of arrays", () => {
  /** The bytes in every kind of array that callers have, each at an odd offset where it can be. */
  const kinds = (bytes: Uint8Array): [string, Uint8Array][] => {
    const shifted = <B extends ArrayBufferLike>(buffer: B): Uint8Array<B> => {
      const view = new Uint8Array(buffer, 3, bytes.length);
      view.set(bytes);
      return view;
    };
    const pooled = Buffer.alloc(bytes.length + 5).subarray(5);
    pooled.set(bytes);
    return [
      ["Uint8Array", new Uint8Array(bytes)],
      ["a subarray", shifted(new ArrayBuffer(bytes.length + 9))],
      ["a Buffer", Buffer.from(bytes)],
      ["a Buffer at an odd offset", pooled],
      ["shared memory", shifted(new SharedArrayBuffer(bytes.length + 9))],
      ["a resizable buffer", shifted(resizable(bytes.length + 9))],
      ["an ArrayBuffer", new Uint8Array(bytes).buffer as unknown as Uint8Array],
      ["a SharedArrayBuffer", shifted(new SharedArrayBuffer(bytes.length + 3)).buffer.slice(3) as unknown as Uint8Array],
      ["a DataView", new DataView(new Uint8Array(bytes).buffer) as unknown as Uint8Array],
      ["an array of another realm", runInNewContext("Uint8Array.from(list)", { list: [...bytes] }) as Uint8Array],
    ];
  };
  const models = {
    raw: inside(),
    typed: encode(matmulModel(typed("w", [64, 32], values), 64, 32)),
    small: encode(matmulModel(raw("w", [8, 4], weights(32)), 8, 4)),
  };
  const names = kinds(new Uint8Array(1)).map(([name]) => name);

  it.each(names.flatMap((kind, i) => Object.keys(models).map((model) => [kind, model, i] as const)))(
    "%s, %s: every mode gives the same bytes",
    async (_, name, i) => {
      const bytes = models[name as keyof typeof models];
      for (const dtype of ["q4", "int8", "fp16"] as const) {
        const expected = await quantizeModelBytes(new Uint8Array(bytes), { dtype });
        const { bytes: out } = await quantizeModelBytes(kinds(bytes)[i][1], { dtype });
        expect(Object.getPrototypeOf(out)).toBe(Uint8Array.prototype);
        expect(Buffer.compare(out, expected.bytes)).toBe(0);
      }
    },
  );
  it.each(names.map((kind, i) => [kind, i] as const))("%s as external data", (_, i) => {
    const opened = readModelBytes(refer({ location: "w.bin", offset: "4" }), {
      "w.bin": kinds(Uint8Array.from([0, 0, 0, 0, ...valueBytes]))[i][1],
    });
    expect(firstWeight(opened)).toEqual(values);
  });
  it.each([
    ["Float32Array", new Float32Array(4)],
    ["Array", [8, 8]],
    ["a string", "model.onnx"],
    ["undefined", undefined],
    ["null", null],
  ])("%s is no bytes", async (name, given) => {
    await expect(quantizeModelBytes(given as never, { dtype: "q4" })).rejects.toThrow(TypeError);
    expect(() => readModelBytes(given as never)).toThrow(`model: expected bytes (a Uint8Array or Buffer, an ArrayBuffer), got ${name}`);
  });
});

describe("files that are no model say what they are", () => {
  const head = (...bytes: number[]): Uint8Array => Uint8Array.from([...bytes, ...new Array<number>(64).fill(3)]);
  const text = (words: string): Uint8Array => new TextEncoder().encode(words);
  const lfs = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n";
  const safetensors = text('\x36\0\0\0\0\0\0\0{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}   \0\0\0\0');
  it.each([
    ["a Git LFS pointer", text(lfs), /git lfs pull/],
    ["an HTML page", text("\ufeff  <!DOCTYPE html><html><body>404</body></html>"), /address/],
    ["a JSON file", text('{"error":"Repository not found"}'), /download/],
    ["a model in ONNX's text form", text("<ir_version: 8>\nagraph (float[N] x) => (y) {}"), /onnx\.parser/],
    ["an XML file", text('<?xml version="1.0"?><net name="m"/>'), /ONNX/],
    ["a gzip file", gzipSync(inside()), /Unpack/],
    ["a zip archive", head(0x50, 0x4b, 3, 4), /PyTorch/],
    ["a zstd file", head(0x28, 0xb5, 0x2f, 0xfd), /Unpack/],
    ["a model in ORT format", head(0x28, 0, 0, 0, 0x4f, 0x52, 0x54, 0x4d), /made from/],
    ["a TFLite model", head(0x20, 0, 0, 0, 0x54, 0x46, 0x4c, 0x33), /tf2onnx/],
    ["a GGUF file", head(0x47, 0x47, 0x55, 0x46, 3, 0, 0, 0), /ONNX/],
    ["an HDF5 file", head(0x89, 0x48, 0x44, 0x46, 13, 10), /Keras/],
    ["a Python pickle", head(0x80, 2), /PyTorch/],
    ["a safetensors file", safetensors, /Export/],
    ["zeros", new Uint8Array(5000), /cut short/],
  ])("%s", (what, bytes, remedy) => {
    writeFileSync(at("in.onnx"), bytes);
    expect(() => inspectModel(at("in.onnx"))).toThrow(`in.onnx: expected an ONNX model, got ${what}`);
    expect(() => inspectModel(at("in.onnx"))).toThrow(remedy);
    expect(() => readModelBytes(bytes)).toThrow(what);
  });
  it("a Git LFS pointer in the place of external data", () => {
    writeFileSync(at("in.onnx"), refer({ location: "in.onnx_data" }));
    writeFileSync(at("in.onnx_data"), lfs);
    expect(() => inspectModel(at("in.onnx"))).toThrow(
      /in\.onnx_data: expected external data of tensor "w", got a Git LFS pointer.*git lfs pull/,
    );
  });
  it("a model that is damaged is not taken for something else", () => {
    expect(() => readModelBytes(inside().subarray(0, 500))).toThrow(/truncated/);
  });
});

describe("pipes and devices", () => {
  const fifo = (name: string): string => {
    execFileSync("mkfifo", [at(name)]);
    return at(name);
  };
  it.runIf(process.platform === "linux")("as calibration data, recipe and config.json: refused at once", async () => {
    for (const name of ["x.npy", "x.npz", "x.jsonl", "x.safetensors"])
      await expect(readFeeds(readModelBytes(inside()), fifo(name))).rejects.toThrow(/got a FIFO/);
    await expect(configFile(fifo("recipe.json"), at("model.onnx"))).rejects.toThrow(/got a FIFO/);
  });
  it.runIf(process.platform === "linux")("as model, data and output: refused at once", async () => {
    const pipe = fifo("pipe");
    expect(() => readModel(pipe)).toThrow(/pipe: expected to read a file, got a FIFO/);
    expect(() => readModel("/dev/zero")).toThrow(/got a device/);
    writeFileSync(at("in.onnx"), refer({ location: "pipe" }));
    expect(() => readModel(at("in.onnx"))).toThrow(/got a FIFO/);
    writeFileSync(at("good.onnx"), inside());
    for (const [path, kind] of [
      [pipe, "a FIFO"],
      ["/dev/null", "a device"],
      [folder, "a folder"],
    ]) {
      await expect(quantizeModel(at("good.onnx"), path, { dtype: "q4", force: true })).rejects.toThrow(
        `${path}: expected a file name, got ${kind}`,
      );
    }
    expect(lstatSync(pipe).isFIFO()).toBe(true);
    expect(lstatSync("/dev/null").isCharacterDevice()).toBe(true);
  });
});

describe("links", () => {
  /** The layout of the Hugging Face cache: files are links into a folder of blobs. */
  const cache = (): string => {
    mkdirSync(at("blobs"));
    mkdirSync(at("snapshots/abc/onnx"), { recursive: true });
    writeFileSync(at("blobs/1111"), refer({ location: "model.onnx_data" }));
    writeFileSync(at("blobs/2222"), valueBytes);
    symlinkSync("../../../blobs/1111", at("snapshots/abc/onnx/model.onnx"));
    symlinkSync("../../../blobs/2222", at("snapshots/abc/onnx/model.onnx_data"));
    return at("snapshots/abc/onnx/model.onnx");
  };
  it("into a cache are followed", async () => {
    const model = cache();
    using opened = readModel(model);
    expect(firstWeight(opened)).toEqual(values);
    expect((await quantizeModel(model, at("snapshots/abc/onnx/model_q4.onnx"), { dtype: "q4" })).quantized).toBe(1);
    // The input and its data are what the links lead to.
    await expect(quantizeModel(model, at("blobs/1111"), { dtype: "q4", force: true })).rejects.toMatchObject({ code: "E_EXISTS" });
    await expect(quantizeModel(model, at("blobs/2222"), { dtype: "q4", force: true })).rejects.toMatchObject({ code: "E_EXISTS" });
  });
  it("to a model alone: its data lies beside the file", () => {
    mkdirSync(at("real"));
    writeFileSync(at("real/m.onnx"), refer({ location: "m.onnx_data" }));
    writeFileSync(at("real/m.onnx_data"), valueBytes);
    symlinkSync("real/m.onnx", at("link.onnx"));
    using opened = readModel(at("link.onnx"));
    expect(firstWeight(opened)).toEqual(values);
  });
  it("that leave both folders are refused, but into a folder that the caller names", () => {
    mkdirSync(at("evil"));
    writeFileSync(at("secret.bin"), valueBytes);
    writeFileSync(at("evil/m.onnx"), refer({ location: "w.bin" }));
    symlinkSync("../secret.bin", at("evil/w.bin"));
    expect(() => readModel(at("evil/m.onnx"))).toThrow(/a link that leaves it/);
    symlinkSync("evil/m.onnx", at("link.onnx"));
    expect(() => readModel(at("link.onnx"))).toThrow(/a link that leaves it/);
    using opened = readModel(at("evil/m.onnx"), { folders: [folder] });
    expect(firstWeight(opened)).toEqual(values);
  });
  it("as output: followed, or refused by option; a data file never", async () => {
    mkdirSync(at("real"));
    writeFileSync(at("real/old.onnx"), "old");
    symlinkSync("real/old.onnx", at("out.onnx"));
    symlinkSync("nowhere", at("dangling.onnx"));
    const model = readModelBytes(inside());
    await expect(writeModel(model, at("out.onnx"))).rejects.toMatchObject({ code: "E_EXISTS" });
    await expect(writeModel(model, at("out.onnx"), { force: true, followLinks: false })).rejects.toThrow(/got a link/);
    await expect(writeModel(model, at("dangling.onnx"), { force: true })).rejects.toThrow(/a link that leads nowhere/);
    expect(readFileSync(at("real/old.onnx"), "utf8")).toBe("old");
    await writeModel(model, at("out.onnx"), { force: true, externalData: true });
    expect(lstatSync(at("out.onnx")).isSymbolicLink()).toBe(true);
    expect(readdirSync(at("real")).sort()).toEqual(["old.onnx", "old.onnx_data"]);
    using back = readModel(at("out.onnx"));
    expect(firstWeight(back)).toEqual(values);
    symlinkSync("real/old.onnx_data", at("new.onnx_data"));
    await expect(writeModel(model, at("new.onnx"), { force: true, externalData: true })).rejects.toThrow(/got a link/);
    expect(existsSync(at("new.onnx"))).toBe(false);
  });
});

describe("external data, in the forms that the runtime takes", () => {
  it.each([
    ["without a length, of a longer file", { location: "w.bin", offset: "4096" }],
    ["of length 0", { location: "w.bin", offset: "4096", length: "0" }],
    ["through a folder and back", { location: "sub/../w.bin", offset: "4096", length: "8192" }],
    ["through . and //", { location: ".//w.bin", offset: "4096", length: "8192" }],
  ])("%s", (_, entries) => {
    mkdirSync(at("sub"));
    writeFileSync(at("w.bin"), Buffer.concat([Buffer.alloc(4096), valueBytes, Buffer.alloc(100)]));
    writeFileSync(at("in.onnx"), refer(entries as Record<string, string>));
    using opened = readModel(at("in.onnx"));
    expect(firstWeight(opened)).toEqual(values);
  });
  it.each(["sub/../../w.bin", "..", "sub/..", "."])("%s stays refused", (location) => {
    mkdirSync(at("m/sub"), { recursive: true });
    writeFileSync(at("w.bin"), valueBytes);
    writeFileSync(at("m/in.onnx"), refer({ location }));
    expect(() => readModel(at("m/in.onnx"))).toThrow(/inside the model's folder/);
  });
});

describe("data that changes while it is read", () => {
  it.each([
    ["longer", () => appendFileSync(at("w.bin"), "x"), /bytes where it had/],
    ["touched", () => utimesSync(at("w.bin"), 1, 1), /a later time/],
    ["renamed", () => renameSync(at("w.bin"), at("v.bin")), /no file of that name/],
    [
      "replaced",
      () => {
        const { atime, mtime } = statSync(at("w.bin"));
        renameSync(at("w.bin"), at("v.bin"));
        writeFileSync(at("w.bin"), valueBytes);
        utimesSync(at("w.bin"), atime, mtime);
      },
      /another file in its place/,
    ],
  ])("%s: nothing is written", async (_, change, words) => {
    writeFileSync(at("in.onnx"), refer({ location: "w.bin" }));
    writeFileSync(at("w.bin"), valueBytes);
    let done = false;
    const onProgress = (): void => {
      if (!done) change();
      done = true;
    };
    const error: unknown = await quantizeModel(at("in.onnx"), at("out.onnx"), { dtype: "q4", onProgress }).catch((e: unknown) => e);
    expect(error).toMatchObject({ code: "E_IO" });
    expect((error as Error).message).toMatch(words);
    expect(readdirSync(folder).filter((name) => name.includes("out.onnx") || name.endsWith(".tmp"))).toEqual([]);
  });
});

describe("outputs", () => {
  it.runIf(process.platform !== "win32")("keep the permissions of the file that they replace", async () => {
    for (const externalData of [false, true]) {
      const model = readModelBytes(inside());
      await writeModel(model, at("out.onnx"), { force: true, externalData });
      expect(statSync(at("out.onnx")).mode & 0o777).toBe(externalData ? 0o600 : 0o666 & ~process.umask());
      chmodSync(at("out.onnx"), 0o600);
      await writeModel(model, at("out.onnx"), { force: true, externalData });
      expect(statSync(at("out.onnx")).mode & 0o777).toBe(0o600);
      if (!externalData) continue;
      chmodSync(at("out.onnx_data"), 0o640);
      await writeModel(model, at("out.onnx"), { force: true, externalData });
      expect(statSync(at("out.onnx_data")).mode & 0o777).toBe(0o640);
    }
  });
  it("have names as long as the file system takes", async () => {
    const long = `${"n".repeat(245)}.onnx`;
    const model = readModelBytes(inside());
    await writeModel(model, at(long), { externalData: true });
    await writeModel(model, at(long), { externalData: true, force: true });
    expect(readdirSync(folder).sort()).toEqual([long, `${long}_data`]);
    await expect(writeModel(model, at(`n${long}`), { externalData: true })).rejects.toThrow(/a name that is too long/);
    expect(readdirSync(folder)).toHaveLength(2);
  });
  it("over a pair: the data of the old model goes, where it was its own", async () => {
    const model = readModelBytes(inside());
    writeFileSync(at("out.onnx_data_7"), "not of this model");
    await writeModel(model, at("out.onnx"), { externalData: true, force: true });
    expect(readdirSync(folder).sort()).toEqual(["out.onnx", "out.onnx_data", "out.onnx_data_7"]);
    await writeModel(model, at("out.onnx"), { force: true });
    expect(readdirSync(folder).sort()).toEqual(["out.onnx", "out.onnx_data_7"]);
    using back = readModel(at("out.onnx"));
    expect(firstWeight(back)).toEqual(values);
  });
});
