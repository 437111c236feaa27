// The assembler: every instruction of the table makes a valid module, numbers are encoded right, and code comes out in
// the order written.
import { describe, expect, it } from "vitest";
import { ModuleBuilder, type Emit, type FunctionBuilder, type ValueType } from "../../../kernels/wasm/engine/asm.ts";
import { createArena, engine } from "../../../kernels/wasm/engine/engine.ts";
import { wasmFeatures } from "../../../kernels/wasm/engine/features.ts";
import { opcodes } from "../../../kernels/wasm/engine/opcodes.ts";

const instance = (m: ModuleBuilder, pages = 1) => {
  const memory = new engine.Memory({ initial: pages, maximum: 65536 });
  return { memory, exports: new engine.Instance(new engine.Module(m.bytes()), { m: { m: memory } }).exports };
};

/** Operand and result types of an instruction, from its name (WebAssembly's naming rules). */
function signature(name: string): { operands: ValueType[]; result: ValueType | null } {
  const [type, op] = name.split(".") as [string, string];
  const t = type as ValueType;
  if (name === "select") return { operands: ["i32", "i32", "i32"], result: "i32" };
  if (name === "drop") return { operands: ["i32"], result: null };
  if (name === "return" || name === "unreachable") return { operands: [], result: null };
  if (name === "memory.copy" || name === "memory.fill") return { operands: ["i32", "i32", "i32"], result: null };
  if (name === "memory.atomic.notify") return { operands: ["i32", "i32"], result: "i32" };
  if (name === "memory.atomic.wait32") return { operands: ["i32", "i32", "i64"], result: "i32" };
  if (name.includes("atomic.rmw.cmpxchg")) return { operands: ["i32", "i32", "i32"], result: "i32" };
  if (name.includes("atomic.rmw")) return { operands: ["i32", "i32"], result: "i32" };
  if (name === "i32.atomic.load") return { operands: ["i32"], result: "i32" };
  if (name === "i32.atomic.store") return { operands: ["i32", "i32"], result: null };
  if (type === "i32" || type === "i64" || type === "f32" || type === "f64") {
    if (op.startsWith("load")) return { operands: ["i32"], result: t };
    if (op.startsWith("store")) return { operands: ["i32", t], result: null };
    const from = /_(i32|i64|f32|f64)(_[su])?$/.exec(op);
    if (from !== null && /^(trunc|convert|demote|promote|reinterpret|extend|wrap)/.test(op))
      return { operands: [from[1] as ValueType], result: t };
    if (["eqz", "clz", "ctz", "popcnt", "abs", "neg", "sqrt"].includes(op)) return { operands: [t], result: op === "eqz" ? "i32" : t };
    const compare = /^(eq|ne|lt|gt|le|ge)(_[su])?$/.test(op);
    return { operands: [t, t], result: compare ? "i32" : t };
  }
  if (op.endsWith("_lane") && /^(load|store)/.test(op)) return { operands: ["i32", "v128"], result: op.startsWith("load") ? "v128" : null };
  if (op.startsWith("load")) return { operands: ["i32"], result: "v128" };
  if (op === "store") return { operands: ["i32", "v128"], result: null };
  const scalar: ValueType = type.startsWith("f32") ? "f32" : type.startsWith("f64") ? "f64" : type.startsWith("i64") ? "i64" : "i32";
  if (op === "splat") return { operands: [scalar], result: "v128" };
  if (op.startsWith("extract_lane")) return { operands: ["v128"], result: scalar };
  if (op.startsWith("replace_lane")) return { operands: ["v128", scalar], result: "v128" };
  if (/^shl$|^shr_/.test(op)) return { operands: ["v128", "i32"], result: "v128" };
  if (/^(any_true|bitmask|all_true)$/.test(op)) return { operands: ["v128"], result: "i32" };
  if (/^(bitselect|relaxed_n?madd|relaxed_laneselect)$|_add_s$/.test(op)) return { operands: ["v128", "v128", "v128"], result: "v128" };
  const unary = /^(not|abs|neg|popcnt|ceil|floor|trunc|nearest|sqrt|demote|promote|extend_|extadd_|trunc_sat|convert_|relaxed_trunc)/.test(
    op,
  );
  return { operands: unary ? ["v128"] : ["v128", "v128"], result: "v128" };
}

function value(f: FunctionBuilder, type: ValueType): Emit {
  if (type === "i32") return f.i32(0);
  if (type === "f32") return f.f32(1.5);
  const local = f.local(type);
  return f.get(local);
}

describe("assembler", () => {
  it("makes a valid module of every instruction", () => {
    const { relaxed } = wasmFeatures();
    let checked = 0;
    for (const [name, op] of Object.entries(opcodes)) {
      if (name.includes("relaxed") && !relaxed) continue;
      const { operands, result } = signature(name);
      const m = new ModuleBuilder({ shared: name.includes("atomic") });
      m.func("f", [], [], (f) => {
        const values = operands.map((type) => value(f, type));
        const [a, b, c] = values;
        let code: Emit;
        if (op.align !== undefined && op.lane === true) code = f.loadLane(name, a, 8, 0, b);
        else if (op.align !== undefined && op.prefix === 0xfe) code = f.atomic(name, a, 8, b, c);
        else if (op.align !== undefined && result !== null) code = f.load(name, a, 300);
        else if (op.align !== undefined) code = () => f.store(name, a, 300, b);
        else if (op.lane === true) code = f.lane(name, 0, a, b);
        else code = f.op(name, a, b, c);
        f.run(result === null ? code : f.op("drop", code));
      });
      expect(engine.validate(m.bytes()), name).toBe(true);
      checked++;
    }
    expect(checked).toBeGreaterThan(200);
  });

  it("encodes constants, offsets and control flow", () => {
    const m = new ModuleBuilder();
    for (const v of [0, 1, -1, 63, 64, -64, -65, 127, 128, 8191, 2147483647, -2147483648])
      m.func(`c${v}`, [], ["i32"], (f) => f.run(f.i32(v)));
    m.func("sum", ["i32"], ["i32"], (f) => {
      const n = f.param(0);
      const total = f.local("i32");
      f.while(f.op("i32.gt_s", n, f.i32(0)), () => {
        f.if(
          f.op("i32.and", n, f.i32(1)),
          () => f.bump(total, n),
          () => f.bump(total, f.op("i32.mul", n, f.i32(-1))),
        );
        f.bump(n, -1);
      });
      f.run(f.get(total));
    });
    m.func("far", ["i32"], ["i32"], (f) => f.run(f.load("i32.load", f.param(0), 60000)));
    const { exports, memory } = instance(m);
    for (const v of [0, 1, -1, 63, 64, -64, -65, 127, 128, 8191, 2147483647, -2147483648]) expect(exports[`c${v}`]()).toBe(v);
    expect(exports.sum(7)).toBe(7 - 6 + 5 - 4 + 3 - 2 + 1);
    new Int32Array(memory.buffer)[(60000 + 40) / 4] = 1234;
    expect(exports.far(40)).toBe(1234);
  });

  it("emits in the order written, constants first", () => {
    const m = new ModuleBuilder();
    m.func("f", ["i32"], [], (f) => {
      const a = f.local("v128");
      f.set(a, f.load("v128.load", f.param(0), 16));
      f.store("v128.store", f.param(0), 32, f.op("i8x16.add", a, f.constant("one", f.v128i8(1))));
    });
    const hex = Buffer.from(m.bytes()).toString("hex");
    const at = (s: string): number => hex.indexOf(s);
    expect(at("fd0c")).toBeGreaterThan(0); // v128.const
    expect(at("fd0c")).toBeLessThan(at("fd000410")); // v128.load offset 16
    expect(at("fd000410")).toBeLessThan(at("fd6e")); // i8x16.add
    expect(at("fd6e")).toBeLessThan(at("fd0b0420")); // v128.store offset 32
  });

  it("refuses an unknown instruction by name", () => {
    expect(() => new ModuleBuilder().func("f", [], [], (f) => f.run(f.op("i32.wat")))).toThrow(/i32\.wat/);
  });
});

describe("arena", () => {
  it("never hands out overlapping ranges, and reuses what is freed", () => {
    const arena = createArena(false, 8 << 20);
    const live = new Map<number, number>();
    let seed = 7;
    for (let i = 0; i < 1500; i++) {
      seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
      if (live.size > 40 || (live.size > 0 && seed % 3 === 0)) {
        const at = [...live.keys()][seed % live.size];
        arena.free(at);
        live.delete(at);
      } else {
        const bytes = 1 + (seed % 100_000);
        const at = arena.allocate(bytes);
        expect(at).toBeGreaterThan(0);
        expect(at % 64).toBe(0);
        for (const [other, size] of live) expect(at + bytes <= other || other + size <= at).toBe(true);
        expect(at + bytes).toBeLessThanOrEqual(arena.memory.buffer.byteLength);
        live.set(at, bytes);
      }
    }
    for (const at of live.keys()) arena.free(at);
    expect(arena.used).toBe(0);
    expect(arena.allocate(9 << 20)).toBe(0);
    expect(() => arena.free(12345)).toThrow(RangeError);
  });

  it("puts bodies in lockstep statement by statement, and cuts none within an instruction", () => {
    const m = new ModuleBuilder();
    m.func("digits", [], ["i32"], (f) => {
      const n = f.local("i32");
      const digit = (d: number) => (): void => f.set(n, f.op("i32.add", f.op("i32.mul", n, f.i32(10)), f.i32(d)));
      f.lockstep([1, 2, 3].map((d) => () => [1, 2].slice(0, d).forEach(digit(d))));
      f.run(f.get(n));
    });
    m.func("held", [], ["i32"], (f) => {
      const [a, b] = f.locals("i32", 2);
      // the second operand has a statement of its own, with the first one on the stack
      const inner = (into: typeof a, value: number): Emit => () => {
        f.set(into, f.i32(value));
        f.run(f.get(into));
      }; // prettier-ignore
      f.lockstep(
        [[a, 7] as const, [b, 5] as const].map(
          ([into, value]) =>
            () =>
              f.set(into, f.op("i32.sub", f.i32(100), inner(into, value))),
        ),
      );
      f.run(f.op("i32.add", f.op("i32.mul", a, f.i32(1000)), b));
    });
    const { digits, held } = instance(m).exports as Record<string, () => number>;
    expect(digits()).toBe(12323);
    expect(held()).toBe(93095);
  });
});
