// A small WebAssembly assembler: functions are written as nested expressions and come out in exactly the order written, because the
// order of instructions is the schedule (V8 keeps it; a C compiler regroups accumulation chains and spills). One module imports one
// memory "m"."m" and exports its functions. Specification: WebAssembly Core 2.0, 5 (binary format); threads and relaxed SIMD proposals.
import { opcodes } from "./opcodes.ts";

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
  for (;;) {
    const byte = v & 0x7f;
    v >>= 7;
    if ((v === 0 && (byte & 0x40) === 0) || (v === -1 && (byte & 0x40) !== 0)) {
      out.push(byte);
      return;
    }
    out.push(byte | 0x80);
  }
}

/** One array of several. */
function joined(parts: readonly ArrayLike<number>[]): Uint8Array<ArrayBuffer> {
  const out = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    out.set(part, at);
    at += part.length;
  }
  return out;
}

/** Code of one function. `op`, `load` and constants are expressions (emitted where they are used); `set`, `store`, `run`, `loop` emit at once. */
export class FunctionBuilder {
  #bytes: number[] = [];
  readonly #prologue: number[] = [];
  readonly #constants = new Map<string, Local>();
  readonly #params: readonly ValueType[];
  readonly #locals: ValueType[] = [];

  constructor(params: readonly ValueType[]) {
    this.#params = params;
  }

  param(index: number): Local {
    return { index, type: this.#params[index] };
  }

  /** A new local variable, zero at entry. */
  local(type: ValueType): Local {
    this.#locals.push(type);
    return { index: this.#params.length + this.#locals.length - 1, type };
  }

  locals(type: ValueType, count: number): Local[] {
    return Array.from({ length: count }, () => this.local(type));
  }

  /** A constant kept in a local that is set at function entry: V8 materialises a vector constant anew at each use. */
  constant(key: string, value: Emit): Local {
    let local = this.#constants.get(key);
    if (local === undefined) {
      local = this.local("v128");
      this.#constants.set(key, local);
      const body = this.#bytes;
      this.#bytes = this.#prologue;
      this.set(local, value);
      this.#bytes = body;
    }
    return local;
  }

  #emit(operand: Operand): void {
    if (typeof operand === "function") operand();
    else {
      this.#bytes.push(0x20);
      unsignedLeb(this.#bytes, operand.index);
    }
  }

  #opcode(name: string): { align?: number; lane?: boolean } {
    const op = opcodes[name];
    if (op === undefined) throw new RangeError(`unknown WebAssembly instruction ${name}`);
    if (op.prefix !== 0) {
      this.#bytes.push(op.prefix);
      unsignedLeb(this.#bytes, op.code);
    } else this.#bytes.push(op.code);
    return op;
  }

  /** An instruction on operands, as an expression. */
  op(name: string, ...operands: Operand[]): Emit {
    return () => {
      for (const operand of operands) this.#emit(operand);
      const { align } = this.#opcode(name);
      if (align !== undefined) this.#bytes.push(align, 0);
      if (name === "memory.copy") this.#bytes.push(0, 0);
      if (name === "memory.fill") this.#bytes.push(0);
    };
  }

  /** An instruction with a lane index. */
  lane(name: string, lane: number, ...operands: Operand[]): Emit {
    return () => {
      for (const operand of operands) this.#emit(operand);
      this.#opcode(name);
      this.#bytes.push(lane);
    };
  }

  /** Load from address + offset (bytes). */
  load(name: string, address: Operand, offset = 0): Emit {
    return () => {
      this.#emit(address);
      const { align } = this.#opcode(name);
      this.#memoryArgument(align!, offset);
    };
  }

  /** Load one lane into a vector: v128.load32_lane and its kin. */
  loadLane(name: string, address: Operand, offset: number, lane: number, vector: Operand): Emit {
    return () => {
      this.#emit(address);
      this.#emit(vector);
      const { align } = this.#opcode(name);
      this.#memoryArgument(align!, offset);
      this.#bytes.push(lane);
    };
  }

  /** Atomic read-modify-write and load, as an expression. */
  atomic(name: string, address: Operand, offset: number, ...operands: Operand[]): Emit {
    return () => {
      this.#emit(address);
      for (const operand of operands) this.#emit(operand);
      const { align } = this.#opcode(name);
      this.#memoryArgument(align!, offset);
    };
  }

  #memoryArgument(align: number, offset: number): void {
    // Natural alignment is a hint only; accesses at other addresses are valid.
    this.#bytes.push(align);
    unsignedLeb(this.#bytes, offset);
  }

  store(name: string, address: Operand, offset: number, value: Operand): void {
    this.#emit(address);
    this.#emit(value);
    const { align } = this.#opcode(name);
    this.#memoryArgument(align!, offset);
  }

  i32(value: number): Emit {
    return () => {
      this.#bytes.push(0x41);
      signedLeb(this.#bytes, value);
    };
  }

  f32(value: number): Emit {
    return () => {
      const bytes = new Uint8Array(new Float32Array([value]).buffer);
      this.#bytes.push(0x43, ...bytes);
    };
  }

  /** A vector constant from its 16 bytes. */
  v128(bytes: ArrayLike<number>): Emit {
    return () => {
      this.#bytes.push(0xfd, 0x0c);
      for (let i = 0; i < 16; i++) this.#bytes.push(bytes[i] & 255);
    };
  }

  v128i32(value: number): Emit {
    return this.v128(new Uint8Array(new Int32Array(4).fill(value).buffer));
  }

  v128i16(value: number): Emit {
    return this.v128(new Uint8Array(new Int16Array(8).fill(value).buffer));
  }

  v128i8(value: number): Emit {
    return this.v128(new Uint8Array(16).fill(value & 255));
  }

  v128f32(value: number): Emit {
    return this.v128(new Uint8Array(new Float32Array(4).fill(value).buffer));
  }

  shuffle(lanes: readonly number[], a: Operand, b: Operand): Emit {
    return () => {
      this.#emit(a);
      this.#emit(b);
      this.#bytes.push(0xfd, 0x0d, ...lanes);
    };
  }

  set(local: Local, value: Operand): void {
    this.#emit(value);
    this.#bytes.push(0x21);
    unsignedLeb(this.#bytes, local.index);
  }

  tee(local: Local, value: Operand): Emit {
    return () => {
      this.#emit(value);
      this.#bytes.push(0x22);
      unsignedLeb(this.#bytes, local.index);
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
      for (const operand of operands) this.#emit(operand);
      this.#bytes.push(0x10);
      unsignedLeb(this.#bytes, target.index);
    };
  }

  /** do { body } while (condition): the body runs at least once. */
  doWhile(body: () => void, condition: Operand): void {
    this.#bytes.push(0x03, 0x40);
    body();
    this.#emit(condition);
    this.#bytes.push(0x0d, 0, 0x0b);
  }

  /** while (condition) { body } */
  while(condition: Operand, body: () => void): void {
    this.#bytes.push(0x02, 0x40, 0x03, 0x40);
    this.#emit(condition);
    this.#bytes.push(0x45, 0x0d, 1); // i32.eqz; br_if out
    body();
    this.#bytes.push(0x0c, 0, 0x0b, 0x0b);
  }

  if(condition: Operand, then: () => void, otherwise?: () => void): void {
    this.#emit(condition);
    this.#bytes.push(0x04, 0x40);
    then();
    if (otherwise !== undefined) {
      this.#bytes.push(0x05);
      otherwise();
    }
    this.#bytes.push(0x0b);
  }

  body(): Uint8Array {
    const head: number[] = [];
    const groups: [ValueType, number][] = [];
    for (const type of this.#locals) {
      const last = groups.at(-1);
      if (last !== undefined && last[0] === type) last[1]++;
      else groups.push([type, 1]);
    }
    unsignedLeb(head, groups.length);
    for (const [type, count] of groups) {
      unsignedLeb(head, count);
      head.push(VALUE_TYPES[type]);
    }
    return joined([head, this.#prologue, this.#bytes, [0x0b]]);
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
