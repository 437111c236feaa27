// Taps of integer convolutions (conv.ts) from the padded image into a panel: 16 outputs at a time, which lie side by
// side in one row, in two, or two columns apart, or anywhere.
import type { Emit, FunctionBuilder, Local } from "../engine/asm.ts";

export interface PackSpec {
  readonly style: "words" | "bytes-u" | "bytes-s";
  /** The image is of uint8, else int8. */
  readonly unsigned: boolean;
}

/** Outputs that are packed and finished at once, outputs of a panel. */
export const SPAN = 16;
export const PANEL = 2 * SPAN;
/** Bytes of a unit of a panel, and of the sums of a filter. */
export const ROW = 4 * PANEL;
/** Taps of a unit. */
export const unitTaps = (style: PackSpec["style"]): 2 | 4 => (style === "words" ? 2 : 4);

/** places(to, first, last, width, columnStep, rowStep): of a panel's outputs from `first` on, the last one repeated. */
export function writePlaces(f: FunctionBuilder): void {
  const [to, first, last, width, columnStep, rowStep] = [0, 1, 2, 3, 4, 5].map((i) => f.param(i));
  const [row, column, left] = f.locals("i32", 3);
  f.set(row, f.op("i32.mul", f.op("i32.div_u", first, width), rowStep));
  f.set(column, f.op("i32.rem_u", first, width));
  f.set(left, f.i32(PANEL));
  f.doWhile(() => {
    f.store("i32.store", to, 0, f.op("i32.add", row, f.op("i32.mul", column, columnStep)));
    f.bump(to, 4);
    f.if(f.op("i32.lt_u", first, last), () => {
      f.bump(first, 1);
      f.bump(column, 1);
      f.if(f.op("i32.eq", column, width), () => {
        f.set(column, f.i32(0));
        f.bump(row, rowStep);
      });
    });
    f.bump(left, -1);
  }, left);
}

export const PACK = ["x", "places", "table", "panel", "units", "zero", "columns"] as const;

/** pack(...): the taps of 16 outputs, of which `columns` are different ones. */
export function writePack(f: FunctionBuilder, { style, unsigned }: PackSpec): void {
  const [x, places, table, panel, units, zero, columns] = PACK.map((_, i) => f.param(i));
  const words = style === "words";
  const taps = unitTaps(style);
  const [end, base, span, away] = f.locals("i32", 4);
  const tap = f.locals("i32", taps);
  const v = f.locals("v128", taps);
  const w = f.locals("v128", 4);
  const [zeros, isFirst] = f.locals("v128", 2);
  const flip = (style === "bytes-u") !== unsigned;
  if (words) f.set(zeros, f.op("i16x8.splat", zero));
  const extended = (half: "low" | "high", of: Local): Emit =>
    f.op("i16x8.sub", f.op(`i16x8.extend_${half}_i8x16_${unsigned ? "u" : "s"}`, of), zeros);
  const byte = (of: Local | Emit): Emit | Local => (flip ? f.op("v128.xor", of, f.constant8(128)) : of);
  const zip = (size: number, half: 0 | 1): number[] =>
    Array.from({ length: 16 }, (_, i) => {
      const [element, inside] = [Math.floor(i / size), i % size];
      return (element % 2) * 16 + (half * 16) / 2 + Math.floor(element / 2) * size + inside;
    });
  f.set(end, f.op("i32.add", table, f.op("i32.shl", units, f.i32(words ? 3 : 4))));
  /** All taps, in turns of a unit: `load` sets v to its taps of the 16 outputs. */
  const whole = (load: (into: Local, at: Local) => void): void =>
    f.doWhile(
      () => {
        for (let i = 0; i < taps; i++) {
          f.set(tap[i], f.op("i32.add", base, f.load("i32.load", table, 4 * i)));
          load(v[i], tap[i]);
        }
        if (words) {
          f.set(w[0], f.shuffle(zip(1, 0), v[0], v[1]));
          f.set(w[1], f.shuffle(zip(1, 1), v[0], v[1]));
          for (let i = 0; i < 4; i++) f.store("v128.store", panel, 16 * i, extended(i % 2 === 0 ? "low" : "high", w[i >> 1]));
        } else {
          for (let i = 0; i < 2; i++)
            for (let half = 0; half < 2; half++) f.set(w[2 * i + half], f.shuffle(zip(1, half as 0 | 1), v[2 * i], v[2 * i + 1]));
          for (let i = 0; i < 4; i++) {
            const half = (i >> 1) as 0 | 1;
            f.store("v128.store", panel, 16 * i, byte(f.shuffle(zip(2, (i % 2) as 0 | 1), w[half], w[2 + half])));
          }
        }
        f.bump(table, 4 * taps);
        f.bump(panel, ROW);
      },
      f.op("i32.lt_u", table, end),
    );
  const [four, at, start] = [f.locals("i32", 4), f.local("i32"), f.local("i32")];
  const singly = (): void => {
    f.set(at, table);
    f.set(start, panel);
    for (let quad = 0; quad < 4; quad++) {
      four.forEach((place, i) => f.set(place, f.op("i32.add", x, f.load("i32.load", places, 16 * quad + 4 * i))));
      f.set(table, at);
      f.set(panel, f.op("i32.add", start, f.i32(16 * quad)));
      const each = (load: () => void): void =>
        f.doWhile(
          () => {
            load();
            f.store("v128.store", panel, 0, words ? extended("low", v[0]) : byte(v[0]));
            f.bump(table, 4 * taps);
            f.bump(panel, ROW);
          },
          f.op("i32.lt_u", table, end),
        );
      // four places that differ and span three steps lie side by side
      f.if(
        f.op("i32.and", f.op("i32.eq", f.op("i32.sub", four[3], four[0]), f.i32(3)), f.op("i32.gt_u", columns, f.i32(4 * quad + 3))),
        () =>
          each(() => {
            for (let t = 0; t < taps; t++)
              f.set(v[t], f.load("v128.load32_zero", f.op("i32.add", four[0], f.load("i32.load", table, 4 * t))));
            for (let t = 0; t < taps; t += 2) f.set(v[t], f.shuffle(zip(1, 0), v[t], v[t + 1]));
            if (!words) f.set(v[0], f.shuffle(zip(2, 0), v[0], v[2]));
          }),
        () =>
          each(() => {
            f.set(v[0], f.constant32(0));
            for (let t = 0; t < taps; t++) {
              f.set(tap[0], f.load("i32.load", table, 4 * t));
              four.forEach((place, i) => f.set(v[0], f.loadLane("v128.load8_lane", f.op("i32.add", place, tap[0]), 0, taps * i + t, v[0])));
            }
          }),
      );
    }
  };
  // places of different outputs rise by at least 1: 16 of them that span 15 lie side by side
  f.set(base, f.load("i32.load", places));
  f.set(span, f.op("i32.sub", f.load("i32.load", places, 60), base));
  const isWhole = f.op("i32.eq", columns, f.i32(SPAN));
  f.if(
    f.op("i32.and", f.op("i32.eq", span, f.i32(15)), isWhole),
    () => {
      f.set(base, f.op("i32.add", base, x));
      whole((into, from) => f.set(into, f.load("v128.load", from)));
    },
    () => {
      f.set(away, f.op("i32.sub", span, f.i32(15)));
      f.if(
        f.op("i32.and", isWhole, twoRuns(f, places, base, away, isFirst)),
        () => {
          f.set(base, f.op("i32.add", base, x));
          const second = (from: Local): Emit => f.load("v128.load", f.op("i32.add", from, away));
          whole((into, from) => f.set(into, f.op("v128.bitselect", f.load("v128.load", from), second(from), isFirst)));
        },
        () => {
          f.set(base, f.op("i32.add", base, x));
          f.if(
            f.op("i32.and", f.op("i32.eq", span, f.i32(30)), evenSteps(f, places)),
            () => {
              const evens = Array.from({ length: 16 }, (_, i) => (i < 8 ? 2 * i : 2 * i + 1));
              whole((into, from) => f.set(into, f.shuffle(evens, f.load("v128.load", from), f.load("v128.load", from, 15))));
            },
            singly,
          );
        },
      );
    },
  );
}

/**
 * Whether the 16 places are two runs of neighbours, of two rows: the second one's first 16 would begin `away` from the
 * first's. Sets which bytes are of the first.
 */
function twoRuns(f: FunctionBuilder, places: Local, base: Local, away: Local, isFirst: Local): Emit {
  const own = f.locals("v128", 4);
  const [first, second, isOther] = f.locals("v128", 3);
  f.set(first, f.op("i32x4.splat", base));
  f.set(second, f.op("i32x4.splat", f.op("i32.add", base, away)));
  f.set(isOther, f.constant32(0));
  own.forEach((v, i) => {
    const lanes = f.v128([0, 1, 2, 3].flatMap((lane) => [4 * i + lane, 0, 0, 0]));
    f.set(v, f.op("i32x4.sub", f.load("v128.load", places, 16 * i), lanes));
    f.set(isOther, f.op("v128.or", isOther, f.op("v128.and", f.op("i32x4.ne", v, first), f.op("i32x4.ne", v, second))));
    f.set(v, f.op("i32x4.eq", v, first));
  });
  const narrow = (a: Local, b: Local): Emit => f.op("i16x8.narrow_i32x4_s", a, b);
  f.set(isFirst, f.op("i8x16.narrow_i16x8_s", narrow(own[0], own[1]), narrow(own[2], own[3])));
  return f.op("i32.eqz", f.op("v128.any_true", isOther));
}

/** Whether the 16 places rise by 2 each: those of one row do, and a row's end that is 2 from the next row's begin. */
function evenSteps(f: FunctionBuilder, places: Local): Emit {
  const step = (i: number): Emit => f.op("i32.sub", f.load("i32.load", places, 4 * i + 4), f.load("i32.load", places, 4 * i));
  return Array.from({ length: 15 }, (_, i) => f.op("i32.eq", step(i), f.i32(2))).reduce((a, b) => f.op("i32.and", a, b));
}
