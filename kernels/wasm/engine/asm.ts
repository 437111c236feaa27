// A small WebAssembly assembler: functions are written as nested expressions and come out in exactly the order written,
// because the order of instructions is the schedule (V8 keeps it; a C compiler regroups accumulation chains and
// spills). One module imports one memory "m"."m" and exports its functions. Specification: WebAssembly Core 2.0, 5
// (binary format); threads and relaxed SIMD proposals.
import { opcodes, type Opcode } from "./opcodes.ts";

export type ValueType = "i32" | "i64" | "f32" | "f64" | "v128";

/** A local variable of a function under construction. */
export interface Local {
  readonly index: number;
  readonly type: ValueType;
}

/** Code that leaves one value (or none) on the stack when it is emitted. */
export type Emit = () => void;
export type Operand = Local | Emit;

/** A function of the module, for `call`. */
export interface FunctionRef {
  readonly index: number;
}

const VALUE_TYPES: Record<ValueType, number> = { i32: 0x7f, i64: 0x7e, f32: 0x7d, f64: 0x7c, v128: 0x7b };

function unsignedLeb(out: number[], value: number): void {
  let v = value;
  while (v > 0x7f) {
    out.push((v & 0x7f) | 0x80);
    v = Math.floor(v / 128);
  }
  out.push(v);
}

function signedLeb(out: number[], value: number): void {
  let v = value | 0;
  while (v < -64 || v > 63) {
    out.push((v & 0x7f) | 0x80);
    v >>= 7;
  }
  out.push(v & 0x7f);
}

/** The bits of a float32. */
function floatBits(value: number): number {
  FLOAT[0] = value;
  return BITS[0];
}
const FLOAT = new Float32Array(1);
const BITS = new Int32Array(FLOAT.buffer);

function instruction(name: string): Opcode {
  const op = opcodes[name];
  if (op === undefined) throw new RangeError(`unknown WebAssembly instruction ${name}`);
  return op;
}

/** One array of several. */
function joined(parts: readonly ArrayLike<number>[]): Uint8Array<ArrayBuffer> {
  let length = 0;
  for (const part of parts) length += part.length;
  const out = new Uint8Array(length);
  let at = 0;
  for (const part of parts) {
    out.set(part, at);
    at += part.length;
  }
  return out;
}

/**
 * Code of one function. `op`, `load` and constants are expressions (emitted where they are used); `set`, `store`,
 * `run`, `loop` emit at once.
 */
export class FunctionBuilder {
  #code: number[] = [];
  readonly #prologue: number[] = [];
  readonly #constants = new Map<string | number, Local>();
  readonly #params: readonly ValueType[];
  /** Runs of locals of one type. */
  readonly #locals: { readonly type: ValueType; count: number }[] = [];
  #made: number;
  /** Values on the stack of the instruction under way. */
  #held = 0;
  /** Under way: the code of a body of `lockstep`, and its length after each statement. */
  #statements: { readonly code: number[]; readonly ends: number[] } | null = null;

  constructor(params: readonly ValueType[]) {
    this.#params = params;
    this.#made = params.length;
  }

  param(index: number): Local {
    return { index, type: this.#params[index] };
  }

  /** A new local variable, zero at entry. */
  local(type: ValueType): Local {
    const last = this.#locals.at(-1);
    if (last !== undefined && last.type === type) last.count++;
    else this.#locals.push({ type, count: 1 });
    return { index: this.#made++, type };
  }

  locals(type: ValueType, count: number): Local[] {
    const all: Local[] = [];
    for (let i = 0; i < count; i++) all.push(this.local(type));
    return all;
  }

  /** A constant kept in a local that is set at function entry: V8 materialises a vector constant anew at each use. */
  constant(key: string | number, value: Emit): Local {
    let local = this.#constants.get(key);
    if (local === undefined) {
      local = this.local("v128");
      this.#constants.set(key, local);
      const body = this.#code;
      this.#code = this.#prologue;
      this.set(local, value);
      this.#code = body;
    }
    return local;
  }

  /** `constant` of 16 equal bytes. */
  constant8(value: number): Local {
    return this.constant32(Math.imul(value & 255, 0x01010101));
  }

  /** `constant` of eight equal 16-bit integers. */
  constant16(value: number): Local {
    return this.constant32(Math.imul(value & 65535, 0x00010001));
  }

  /** `constant` of four equal 32-bit integers. */
  constant32(value: number): Local {
    return this.constant(value | 0, this.v128i32(value));
  }

  /** `constant` of four equal float32. */
  constantF32(value: number): Local {
    return this.constant32(floatBits(value));
  }

  #emit(operand: Operand): void {
    if (typeof operand === "function") operand();
    else this.#variable(0x20, operand);
  }

  /** Operands of one instruction, in order. */
  #operands(...operands: readonly (Operand | undefined)[]): void {
    const before = this.#held;
    for (const operand of operands)
      if (operand !== undefined) {
        this.#emit(operand);
        this.#held++;
      }
    this.#held = before;
  }

  #variable(opcode: number, { index }: Local): void {
    this.#code.push(opcode);
    if (index < 128) this.#code.push(index);
    else unsignedLeb(this.#code, index);
  }

  #opcode({ prefix, code }: Opcode): void {
    if (prefix === 0) this.#code.push(code);
    else if (code < 128) this.#code.push(prefix, code);
    else this.#code.push(prefix, (code & 127) | 128, code >> 7);
  }

  /** An instruction on operands, as an expression. */
  op(name: string, a?: Operand, b?: Operand, c?: Operand): Emit {
    const op = instruction(name);
    return () => {
      this.#operands(a, b, c);
      this.#opcode(op);
      if (op.memories !== undefined) for (let i = 0; i < op.memories; i++) this.#code.push(0);
    };
  }

  /** An instruction with a lane index. */
  lane(name: string, lane: number, a: Operand, b?: Operand): Emit {
    const op = instruction(name);
    return () => {
      this.#operands(a, b);
      this.#opcode(op);
      this.#code.push(lane);
    };
  }

  /** Load from address + offset (bytes). */
  load(name: string, address: Operand, offset = 0): Emit {
    const op = instruction(name);
    return () => {
      this.#emit(address);
      this.#memory(op, offset);
    };
  }

  /** Load one lane into a vector: v128.load32_lane and its kin. */
  loadLane(name: string, address: Operand, offset: number, lane: number, vector: Operand): Emit {
    const op = instruction(name);
    return () => {
      this.#operands(address, vector);
      this.#memory(op, offset);
      this.#code.push(lane);
    };
  }

  /** Atomic read-modify-write and load, as an expression. */
  atomic(name: string, address: Operand, offset: number, a?: Operand, b?: Operand): Emit {
    const op = instruction(name);
    return () => {
      this.#operands(address, a, b);
      this.#memory(op, offset);
    };
  }

  #memory(op: Opcode, offset: number): void {
    this.#opcode(op);
    // natural alignment is a hint only; accesses at other addresses are valid
    this.#code.push(op.align!);
    unsignedLeb(this.#code, offset);
  }

  store(name: string, address: Operand, offset: number, value: Operand): void {
    this.#operands(address, value);
    this.#memory(instruction(name), offset);
  }

  i32(value: number): Emit {
    return () => {
      this.#code.push(0x41);
      signedLeb(this.#code, value);
    };
  }

  f32(value: number): Emit {
    return () => {
      this.#code.push(0x43);
      this.#word(floatBits(value));
    };
  }

  #word(word: number): void {
    this.#code.push(word & 255, (word >> 8) & 255, (word >> 16) & 255, word >>> 24);
  }

  /** A vector constant from its 16 bytes. */
  v128(bytes: ArrayLike<number>): Emit {
    return () => {
      this.#code.push(0xfd, 0x0c);
      for (let i = 0; i < 16; i++) this.#code.push(bytes[i] & 255);
    };
  }

  v128i32(value: number): Emit {
    return () => {
      this.#code.push(0xfd, 0x0c);
      for (let i = 0; i < 4; i++) this.#word(value);
    };
  }

  v128i16(value: number): Emit {
    return this.v128i32(Math.imul(value & 65535, 0x00010001));
  }

  v128i8(value: number): Emit {
    return this.v128i32(Math.imul(value & 255, 0x01010101));
  }

  v128f32(value: number): Emit {
    return this.v128i32(floatBits(value));
  }

  shuffle(lanes: readonly number[], a: Operand, b: Operand): Emit {
    return () => {
      this.#operands(a, b);
      this.#code.push(0xfd, 0x0d, ...lanes);
    };
  }

  set(local: Local, value: Operand): void {
    this.#emit(value);
    this.#variable(0x21, local);
    if (this.#held === 0 && this.#statements?.code === this.#code) this.#statements.ends.push(this.#code.length);
  }

  /**
   * Bodies statement by statement, each one's first, then each one's second: processors look only so far ahead, and
   * what waits for its own results has the others to do. Bodies have no blocks, and do not depend on each other.
   */
  lockstep(bodies: readonly (() => void)[]): void {
    const outer = this.#code;
    const written = bodies.map((body) => {
      const statements = { code: [] as number[], ends: [] as number[] };
      this.#code = statements.code;
      this.#statements = statements;
      body();
      return statements;
    });
    this.#code = outer;
    this.#statements = null;
    const most = Math.max(...written.map(({ ends }) => ends.length));
    for (let i = 0; i <= most; i++)
      for (const { code, ends } of written) outer.push(...code.slice(i === 0 ? 0 : (ends[i - 1] ?? code.length), ends[i]));
  }

  tee(local: Local, value: Operand): Emit {
    return () => {
      this.#emit(value);
      this.#variable(0x22, local);
    };
  }

  /** A local's value, as an expression. */
  get(local: Local): Emit {
    return () => this.#emit(local);
  }

  /** local += amount (i32). */
  bump(local: Local, amount: number | Operand): void {
    this.set(local, this.op("i32.add", local, typeof amount === "number" ? this.i32(amount) : amount));
  }

  /** Emits an expression now: a call, or a value left as the function's result. */
  run(operand: Operand): void {
    this.#emit(operand);
  }

  call(target: FunctionRef, ...operands: Operand[]): Emit {
    return () => {
      this.#operands(...operands);
      this.#code.push(0x10);
      unsignedLeb(this.#code, target.index);
    };
  }

  /** do { body } while (condition): the body runs at least once. */
  doWhile(body: () => void, condition: Operand): void {
    this.#code.push(0x03, 0x40);
    body();
    this.#emit(condition);
    this.#code.push(0x0d, 0, 0x0b);
  }

  /** while (condition) { body } */
  while(condition: Operand, body: () => void): void {
    this.#code.push(0x02, 0x40, 0x03, 0x40);
    this.#emit(condition);
    this.#code.push(0x45, 0x0d, 1); // i32.eqz; br_if out
    body();
    this.#code.push(0x0c, 0, 0x0b, 0x0b);
  }

  if(condition: Operand, then: () => void, otherwise?: () => void): void {
    this.#emit(condition);
    this.#code.push(0x04, 0x40);
    then();
    if (otherwise !== undefined) {
      this.#code.push(0x05);
      otherwise();
    }
    this.#code.push(0x0b);
  }

  /** Declarations of locals, constants, code. */
  body(): Uint8Array {
    const head: number[] = [];
    unsignedLeb(head, this.#locals.length);
    for (const { type, count } of this.#locals) {
      unsignedLeb(head, count);
      head.push(VALUE_TYPES[type]);
    }
    this.#code.push(0x0b);
    return joined([head, this.#prologue, this.#code]);
  }
}

/** A module under construction: imports memory "m"."m", defines functions, exports those with a name. */
export class ModuleBuilder {
  readonly #shared: boolean;
  readonly #types: string[] = [];
  readonly #typeBytes: number[][] = [];
  readonly #functions: { type: number; body: Uint8Array; name: string | null }[] = [];

  constructor(options: { readonly shared?: boolean } = {}) {
    this.#shared = options.shared ?? false;
  }

  /** Defines a function; `write` emits its body. A function without a name is internal; a name is ASCII. */
  func(name: string | null, params: readonly ValueType[], results: readonly ValueType[], write: (f: FunctionBuilder) => void): FunctionRef {
    const key = `${params.join()}>${results.join()}`;
    let type = this.#types.indexOf(key);
    if (type < 0) {
      type = this.#types.length;
      this.#types.push(key);
      const bytes = [0x60, params.length, ...params.map((p) => VALUE_TYPES[p]), results.length, ...results.map((r) => VALUE_TYPES[r])];
      this.#typeBytes.push(bytes);
    }
    const builder = new FunctionBuilder(params);
    write(builder);
    this.#functions.push({ type, body: builder.body(), name });
    return { index: this.#functions.length - 1 };
  }

  bytes(): Uint8Array<ArrayBuffer> {
    const leb = (value: number): number[] => {
      const out: number[] = [];
      unsignedLeb(out, value);
      return out;
    };
    const parts: ArrayLike<number>[] = [[0, 0x61, 0x73, 0x6d, 1, 0, 0, 0]];
    const section = (id: number, count: number, items: readonly ArrayLike<number>[]): void => {
      const content = [leb(count), ...items];
      parts.push([id], leb(content.reduce((sum, part) => sum + part.length, 0)), ...content);
    };
    section(1, this.#typeBytes.length, this.#typeBytes);
    // memory import; limits 0..65536 pages (4 GiB), flag 3 = shared with maximum
    section(2, 1, [[1, 0x6d, 1, 0x6d, 2, this.#shared ? 3 : 1, 0], leb(65536)]);
    section(
      3,
      this.#functions.length,
      this.#functions.map((f) => leb(f.type)),
    );
    const exported = this.#functions.flatMap((f, index): ArrayLike<number>[] =>
      f.name === null ? [] : [leb(f.name.length), Array.from(f.name, (letter) => letter.charCodeAt(0)), [0], leb(index)],
    );
    section(7, exported.length / 4, exported);
    section(
      10,
      this.#functions.length,
      this.#functions.flatMap((f) => [leb(f.body.length), f.body]),
    );
    return joined(parts);
  }
}
