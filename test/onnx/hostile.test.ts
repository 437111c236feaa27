// Bad input: each case gives one clear LowbitError, leaves no file behind and the input as it was.
import { chmodSync, linkSync, mkdirSync, mkdtempSync, readFileSync, readdirSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { isLowbitError } from "../../formats/core/errors.ts";
import type { ModelProto } from "../../src/onnx/file/gen/onnx_pb.ts";
import { inspectModel, quantizeModel, readModel, readModelBytes } from "../../src/onnx/index.ts";
import { T, encode, external, graph, matmulModel, model, node, raw, typed, value, weights } from "./build.ts";
import { quantizeModelBytes } from "./kept.ts";

const fashion = new URL("../fixtures/fashion-cnn/fashion_cnn.onnx", import.meta.url).pathname;
const goodBytes = (): Uint8Array => encode(matmulModel(raw("w", [64, 32], weights(2048)), 64, 32));

let folder = "";
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "lowbit-hostile-"));
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

/**
 * Quantizes bytes from a file; expects one LowbitError with the code and text, and nothing but the input in the folder.
 */
async function expectRefused(bytes: Uint8Array, code: string, text: RegExp, options: object = {}): Promise<void> {
  const input = join(folder, "in.onnx");
  writeFileSync(input, bytes);
  const before = readdirSync(folder).sort();
  const error: unknown = await quantizeModel(input, join(folder, "out.onnx"), { dtype: "q4", ...options }).catch((e: unknown) => e);
  expect(isLowbitError(error), String(error)).toBe(true);
  expect((error as { code: string }).code).toBe(code);
  expect((error as Error).message).toMatch(text);
  expect((error as Error).message).toMatch(/expected .+, got /s);
  expect(readdirSync(folder).sort()).toEqual(before);
  expect(Buffer.compare(readFileSync(input), bytes)).toBe(0);
}

const change = (edit: (proto: ModelProto) => void): Uint8Array => {
  const proto = matmulModel(raw("w", [64, 32], weights(2048)), 64, 32);
  edit(proto);
  return encode(proto);
};

describe("no model", () => {
  it.each([
    ["empty", new Uint8Array(0)],
    ["text", new TextEncoder().encode("<!DOCTYPE html><html><body>Not found</body></html>")],
    ["json", new TextEncoder().encode('{"model": 1}')],
    ["a Git LFS pointer", new TextEncoder().encode("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")],
    ["zeros", new Uint8Array(4096)],
    ["0xff", new Uint8Array(4096).fill(255)],
    ["another protobuf: no graph", Uint8Array.of(0x08, 0x08)],
  ])("%s", (_name, bytes) => expectRefused(bytes, "E_ONNX", /not an ONNX model/));

  it("no opset_import", () =>
    expectRefused(
      change((p) => (p.opsetImport = [])),
      "E_ONNX",
      /no opset_import/,
    ));
  it("a missing file", async () => {
    await expect(quantizeModel(join(folder, "none.onnx"), join(folder, "o.onnx"), { dtype: "q4" })).rejects.toMatchObject({ code: "E_IO" });
    expect(() => inspectModel(folder)).toThrow(/a folder/);
  });
  it("messages nested without end", () => {
    let bytes = new Uint8Array(0);
    // attribute.g -> graph.node -> node.attribute, 200 levels.
    const wrap = (field: number, inner: Uint8Array): Uint8Array<ArrayBuffer> => {
      const length: number[] = [];
      let n = inner.length;
      do {
        length.push((n & 127) | (n > 127 ? 128 : 0));
        n >>= 7;
      } while (n > 0);
      return Uint8Array.from([field * 8 + 2, ...length, ...inner]);
    };
    for (let i = 0; i < 200; i++) bytes = wrap(1, wrap(5, wrap(6, bytes)));
    return expectRefused(wrap(7, bytes), "E_ONNX", /nested/);
  });
});

describe("truncated", () => {
  it("at every 997th byte", async () => {
    const bytes = new Uint8Array(readFileSync(fashion));
    const input = join(folder, "in.onnx");
    let refused = 0;
    for (let length = 0; length < bytes.length; length += 997) {
      writeFileSync(input, bytes.subarray(0, length));
      const error: unknown = await quantizeModel(input, join(folder, "out.onnx"), { dtype: "q8" }).catch((e: unknown) => e);
      expect(isLowbitError(error) && error.code, `${length}: ${String(error)}`).toBe("E_ONNX");
      refused++;
    }
    expect(refused).toBe(Math.ceil(bytes.length / 997));
    expect(readdirSync(folder)).toEqual(["in.onnx"]);
  });
  it("at every byte of a small model, from bytes", () => {
    const bytes = goodBytes();
    // The last field is opset_import (2 + 4 bytes): without it the rest is no model.
    for (let length = 0; length < bytes.length; length++) {
      expect(() => readModelBytes(bytes.subarray(0, length)), String(length)).toThrow(/truncated|damaged|not an ONNX model/);
    }
  });
});

describe("tensors", () => {
  it.each([
    ["too few bytes", raw("w", [64, 33], weights(2048))],
    ["too many bytes", raw("w", [64, 31], weights(2048))],
    ["too few typed values", typed("w", [64, 33], weights(2048))],
    ["a handful of typed values", typed("w", [4, 4], weights(15))],
    ["no values", typed("w", [4, 4], new Float32Array(0))],
  ])("dims that disagree: %s", (_name, tensor) =>
    expectRefused(encode(matmulModel(tensor, 64, 32)), "E_ONNX", /tensor "w": expected \d+ values/),
  );
  it.each([
    ["overflow", [2n ** 40n, 2n ** 40n]],
    ["overflow to zero in 64 bits", [2n ** 32n, 2n ** 32n]],
    ["negative", [-64n, -32n]],
  ])("dims: %s", (_name, dims) =>
    expectRefused(
      change((p) => (p.graph!.initializer[0].dims = dims)),
      "E_ONNX",
      /2\^53 elements/,
    ),
  );
  it("an unknown data type", () =>
    expectRefused(
      change((p) => (p.graph!.initializer[0].dataType = 99)),
      "E_ONNX",
      /data type, got 99/,
    ));
  it.each([NaN, Infinity, -Infinity])("a weight that is %s", async (bad) => {
    const values = weights(2048);
    values[777] = bad;
    for (const dtype of ["q4", "int8", "uint8"]) {
      await expectRefused(
        encode(matmulModel(raw("w", [64, 32], values), 64, 32)),
        "E_VALUE",
        /layer mm: expected finite weights, got .* at index 777/,
        { dtype },
      );
    }
    // The way out that the message names.
    const { report } = await quantizeModelBytes(encode(matmulModel(raw("w", [64, 32], values), 64, 32)), { dtype: "q4", exclude: ["mm"] });
    expect(report.layers[0].reason).toBe("excluded by mm");
  });
});

describe("external data", () => {
  const refer = (entries: Record<string, string>): Uint8Array => encode(matmulModel(external("w", [64, 32], entries), 64, 32));
  it("missing", () => expectRefused(refer({ location: "w.bin" }), "E_IO", /external data in .*w\.bin/));
  it.each(["../w.bin", "a/../../w.bin", "..\\w.bin", "/etc/passwd", "C:\\w.bin", "c:w.bin", "\\\\server\\w.bin"])(
    "outside the folder: %s",
    (location) => expectRefused(refer({ location }), "E_ONNX", /inside the model's folder/),
  );
  it("a link that leaves the folder, to a file or through a folder", async () => {
    const outside = mkdtempSync(join(tmpdir(), "lowbit-outside-"));
    writeFileSync(join(outside, "w.bin"), new Uint8Array(8192));
    symlinkSync(join(outside, "w.bin"), join(folder, "w.bin"));
    symlinkSync(outside, join(folder, "sub"));
    await expectRefused(refer({ location: "w.bin" }), "E_ONNX", /link that leaves it/);
    await expectRefused(refer({ location: "sub/w.bin" }), "E_ONNX", /link that leaves it/);
    rmSync(outside, { recursive: true });
  });
  it("a link inside the folder is fine", async () => {
    mkdirSync(join(folder, "data"));
    writeFileSync(join(folder, "data/w.bin"), new Uint8Array(weights(2048).buffer));
    symlinkSync(join(folder, "data/w.bin"), join(folder, "w.bin"));
    writeFileSync(join(folder, "in.onnx"), refer({ location: "w.bin" }));
    expect((await quantizeModel(join(folder, "in.onnx"), join(folder, "out.onnx"), { dtype: "q4" })).quantized).toBe(1);
  });
  it("too short, or with numbers that are none", async () => {
    writeFileSync(join(folder, "w.bin"), new Uint8Array(8192));
    await expectRefused(refer({ location: "w.bin", offset: "4", length: "8192" }), "E_ONNX", /bytes 4 to 8196 .* got a file of 8192/);
    await expectRefused(refer({ location: "w.bin", offset: "-4" }), "E_ONNX", /whole number, got "-4"/);
    await expectRefused(refer({ location: "w.bin", offset: "1e3" }), "E_ONNX", /whole number/);
    await expectRefused(refer({ location: "w.bin", length: "8188" }), "E_ONNX", /2048 values .* got 8188 bytes/);
    await expectRefused(refer({ offset: "0" }), "E_ONNX", /location/);
  });
});

describe("graphs", () => {
  const chain = (nodes: ReturnType<typeof node>[]): Uint8Array =>
    encode(
      model(
        graph({
          input: [value("x", T.FLOAT, [1, 64])],
          output: [value("y", T.FLOAT, [1, 32])],
          initializer: [raw("w", [64, 32], weights(2048))],
          node: nodes,
        }),
      ),
    );
  it("a cycle", () =>
    expectRefused(
      chain([node("Add", ["x", "b"], ["a"]), node("Relu", ["a"], ["b"]), node("MatMul", ["a", "w"], ["y"])]),
      "E_ONNX",
      /acyclic graph/,
    ));
  it("a node that reads itself", () =>
    expectRefused(chain([node("Add", ["x", "a"], ["a"]), node("MatMul", ["a", "w"], ["y"])]), "E_ONNX", /acyclic/));
  it("unsorted is sorted, with a note", async () => {
    const bytes = chain([node("MatMul", ["a", "w"], ["y"], {}, "mm"), node("Relu", ["x"], ["a"], {}, "relu")]);
    const { bytes: out, report } = await quantizeModelBytes(bytes, { dtype: "q4" });
    expect(readModelBytes(out).proto.graph!.node.map(({ opType }) => opType)).toEqual(["Relu", "MatMulNBits"]);
    expect(report.notes.join()).toMatch(/sorted/);
  });
  it("a value that nothing makes", () => expectRefused(chain([node("MatMul", ["nowhere", "w"], ["y"])]), "E_ONNX", /"nowhere"/));
  it("a value made twice", () =>
    expectRefused(
      chain([node("Relu", ["x"], ["a"]), node("Abs", ["x"], ["a"]), node("MatMul", ["a", "w"], ["y"])]),
      "E_ONNX",
      /"a".*one definition/,
    ));
  it("names that are not UTF-8 and would become one", () => {
    const bytes = chain([node("Relu", ["x"], ["AAA"]), node("Abs", ["AAA"], ["BBB"]), node("MatMul", ["BBB", "w"], ["y"])]);
    bytes.forEach((byte, i) => {
      if (byte === 0x41 && bytes[i + 1] === 0x41 && bytes[i + 2] === 0x41) bytes.fill(0xff, i, i + 3);
      if (byte === 0x42 && bytes[i + 1] === 0x42 && bytes[i + 2] === 0x42) bytes.fill(0xfe, i, i + 3);
    });
    return expectRefused(bytes, "E_ONNX", /not UTF-8.*rename/);
  });
  it("an initializer given twice", () =>
    expectRefused(
      change((p) => p.graph!.initializer.push(p.graph!.initializer[0])),
      "E_ONNX",
      /"w".*two initializers/,
    ));
  it("a node that makes a name already taken", () =>
    expectRefused(chain([node("Relu", ["x"], ["w"]), node("MatMul", ["x", "w"], ["y"])]), "E_ONNX", /"w"/));
});

describe("outputs", () => {
  const input = (): string => join(folder, "in.onnx");
  const q4 = (output: string, options: object = {}): Promise<unknown> => quantizeModel(input(), output, { dtype: "q4", ...options });
  beforeEach(() => writeFileSync(input(), goodBytes()));

  it("an existing file is kept, unless forced", async () => {
    const out = join(folder, "out.onnx");
    writeFileSync(out, "mine");
    await expect(q4(out)).rejects.toMatchObject({ code: "E_EXISTS" });
    expect(readFileSync(out, "utf8")).toBe("mine");
    await q4(out, { force: true });
    expect(readModel(out).proto.graph!.node[0].opType).toBe("MatMulNBits");
    expect(readdirSync(folder).sort()).toEqual(["in.onnx", "out.onnx"]);
  });
  it("an existing data file too", async () => {
    writeFileSync(join(folder, "out.onnx_data"), "mine");
    await expect(q4(join(folder, "out.onnx"), { externalData: true })).rejects.toMatchObject({ code: "E_EXISTS" });
    expect(readdirSync(folder).sort()).toEqual(["in.onnx", "out.onnx_data"]);
  });
  it("the input is never overwritten, by whatever name", async () => {
    linkSync(input(), join(folder, "hard.onnx"));
    symlinkSync(input(), join(folder, "soft.onnx"));
    for (const name of ["in.onnx", "hard.onnx", "soft.onnx", "./in.onnx"]) {
      await expect(q4(join(folder, name), { force: true })).rejects.toMatchObject({ code: "E_EXISTS" });
    }
    expect(Buffer.compare(readFileSync(input()), goodBytes())).toBe(0);
  });
  it("nor is its external data", async () => {
    writeFileSync(join(folder, "out.onnx_data"), new Uint8Array(weights(2048).buffer));
    writeFileSync(input(), encode(matmulModel(external("w", [64, 32], { location: "out.onnx_data" }), 64, 32)));
    await expect(q4(join(folder, "out.onnx"), { force: true, externalData: true })).rejects.toMatchObject({ code: "E_EXISTS" });
    expect(readFileSync(join(folder, "out.onnx_data")).length).toBe(8192);
  });
  it("a folder that is missing, a file or a folder in the way", async () => {
    await expect(q4(join(folder, "no/out.onnx"))).rejects.toMatchObject({ code: "E_IO" });
    await expect(q4(join(input(), "out.onnx"))).rejects.toMatchObject({ code: "E_IO" });
    await expect(q4(folder, { force: true })).rejects.toMatchObject({ code: "E_IO" });
    expect(readdirSync(folder)).toEqual(["in.onnx"]);
  });
  it("a folder that must not be written", async () => {
    // Permissions do not bind root; in /proc not even root can create a file.
    const locked = process.getuid?.() === 0 ? "/proc" : join(folder, "locked");
    mkdirSync(join(folder, "locked"));
    chmodSync(join(folder, "locked"), 0o500);
    await expect(q4(join(locked, "out.onnx"))).rejects.toMatchObject({ code: "E_IO" });
    chmodSync(join(folder, "locked"), 0o700);
  });
  it("an abort in the middle leaves nothing", async () => {
    writeFileSync(
      input(),
      encode(
        model(
          graph({
            input: [value("x", T.FLOAT, [1, 256])],
            output: [value("y7", T.FLOAT, [1, 256])],
            initializer: Array.from({ length: 8 }, (_, i) => raw(`w${i}`, [256, 256], weights(65536, i + 1))),
            node: Array.from({ length: 8 }, (_, i) => node("MatMul", [i === 0 ? "x" : `y${i - 1}`, `w${i}`], [`y${i}`])),
          }),
        ),
      ),
    );
    for (const externalData of [false, true]) {
      for (const stopAt of [0, 3, 8]) {
        const controller = new AbortController();
        let steps = 0;
        const onProgress = (): void => {
          if (steps++ === stopAt) controller.abort();
        };
        await expect(q4(join(folder, "out.onnx"), { signal: controller.signal, onProgress, externalData })).rejects.toMatchObject({
          code: "E_ABORTED",
        });
        expect(readdirSync(folder)).toEqual(["in.onnx"]);
      }
    }
    await expect(q4(join(folder, "out.onnx"), { signal: AbortSignal.abort() })).rejects.toMatchObject({ code: "E_ABORTED" });
  });
});

describe("options", () => {
  it.each([
    [{ dtype: "q3" }, /dtype: expected one of/],
    [{ dtype: "q4", blockSize: 20 }, /blockSize: expected one of 16, 32/],
    [{ dtype: "q4", accuracyLevel: 7 }, /accuracyLevel/],
    [{ dtype: "int8", blockSize: 32 }, /blockSize: expected only with q4/],
    [{ dtype: "fp16", perChannel: true }, /perChannel/],
  ])("%j", async (options, text) => {
    await expect(quantizeModelBytes(goodBytes(), options as never)).rejects.toThrow(text);
  });
  it("patterns and operators that match nothing", async () => {
    await expect(quantizeModelBytes(goodBytes(), { dtype: "q4", exclude: ["lm_head*"] })).rejects.toThrow(/lm_head\*.*inspect/);
    await expect(quantizeModelBytes(goodBytes(), { dtype: "q4", include: ["/mn/"] })).rejects.toThrow(/\/mn\//);
    await expect(quantizeModelBytes(goodBytes(), { dtype: "q4", include: ["/(/"] })).rejects.toThrow(/regular expression/);
    await expect(quantizeModelBytes(goodBytes(), { dtype: "q4", opTypes: ["Conv"] })).rejects.toThrow(/opTypes: .* got Conv/);
  });
});

describe("mutated bytes", () => {
  it("never hang and throw nothing but LowbitError", async () => {
    const small = encode(
      model(
        graph({
          input: [value("x", T.FLOAT, ["b", 32])],
          output: [value("y", T.FLOAT, ["b", 8])],
          initializer: [raw("w", [32, 16], weights(512)), typed("v", [16, 8], weights(128)), raw("c", [8], weights(8))],
          node: [node("MatMul", ["x", "w"], ["h"], {}, "a"), node("Gemm", ["h", "v", "c"], ["y"], { alpha: 0.5 }, "b")],
        }),
      ),
    );
    const edit = fc.array(fc.record({ at: fc.nat(small.length - 1), byte: fc.integer({ min: 0, max: 255 }) }), {
      minLength: 1,
      maxLength: 8,
    });
    await fc.assert(
      fc.asyncProperty(
        edit,
        fc.constantFrom("q4", "int8", "fp16"),
        fc.integer({ min: 0, max: small.length }),
        async (edits, dtype, cut) => {
          const bytes = small.slice(0, cut < 64 ? small.length : Math.max(cut, small.length - 40));
          for (const { at, byte } of edits) if (at < bytes.length) bytes[at] = byte;
          try {
            await quantizeModelBytes(bytes, { dtype: dtype as never });
          } catch (error) {
            if (!isLowbitError(error)) throw error;
          }
        },
      ),
      { numRuns: 1500, seed: 20261122 },
    );
  });
});
