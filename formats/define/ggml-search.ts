// The inner loops of the k-quants' encoders, one value at a time: runs with scale and minimum (make_qkx2_quants), and
// runs with a signed scale (make_qx_quants). Spec: ggml-org/ggml src/ggml-quants.c. The reference's search is done in
// float32, operation by operation, so that what it stores is among the candidates; the own one in float64, its errors
// closed forms of the sums that least squares needs. kernels/wasm/convert/search.ts does the same in lanes.
import { searchRoom, type AffineSearch, type SearchLoops, type SearchRoom, type SearchSpec, type SignedSearch } from "../core/search.ts";

const f32 = Math.fround;
/** 1.5 * 2^52, and 1.5 * 2^23: added and taken away again they round to an integer, halves to even. */
export const MAGIC = 6755399441055744;
const MAGIC32 = 12582912;
const nearest32 = (v: number): number => f32(f32(v + MAGIC32) - MAGIC32);
/** Where all of a run is smaller, the reference makes zeros of it. */
export const TINY = f32(1e-15);

/** Steps of scale and minimum that are tried around a pair: the minimum gains where the scale grows. */
export const NEAR = [1, 0, -1, 0, 0, 1, 0, -1, 1, 1, -1, -1] as const;

interface Block {
  x: Float32Array;
  at: number;
  u: Float32Array | null;
}

/** The loops of a search, without a kernel. */
export const searchLoops = (spec: SearchSpec): SearchLoops => (spec.kind === "affine" ? affineLoops(spec) : signedLoops(spec));

function affineLoops(spec: AffineSearch): SearchLoops {
  const { runs, size, top, most } = spec;
  const room = searchRoom(runs);
  const block: Block = { x: new Float32Array(0), at: 0, u: null };
  const w = new Float32Array(size);
  const codes = new Float32Array(size);

  function runError(r: number, s: number, m: number): number {
    const { x, u } = block;
    const from = block.at + r * size;
    const inverse = s > 0 ? 1 / s : 0;
    let error = 0;
    for (let j = from; j < from + size; j++) {
      const v = x[j] + m;
      let q = v * inverse + MAGIC - MAGIC;
      q = q > top ? top : q;
      const e = s * (q > 0 ? q : 0) - v;
      error += u === null ? e * e : u[j] * e * e;
    }
    return error;
  }

  const code = (v: number, unit: number): number => {
    if (!(unit > 0)) return 0;
    const q = v / unit + MAGIC - MAGIC;
    return q > most ? most : q > 0 ? q : 0;
  };

  function near(r: number, d: number, dmin: number): void {
    const { scales, mins } = room;
    const [s0, m0] = [scales[r], mins[r]];
    let least = runError(r, d * s0, dmin * m0);
    for (let n = 0; n < NEAR.length; n += 2) {
      const i = s0 + NEAR[n];
      const k = m0 + NEAR[n + 1];
      if (i < 0 || i > most || k < 0 || k > most || (k !== m0 && !(dmin > 0))) continue;
      const e = runError(r, d * i, dmin * k);
      if (!(e < least)) continue;
      least = e;
      scales[r] = i;
      mins[r] = k;
    }
  }

  function judge(d: number, dmin: number): void {
    const { x, at, u } = block;
    for (let r = 0; r < runs; r++) {
      const s = d * room.scales[r];
      const m = dmin * room.mins[r];
      const inverse = s > 0 ? 1 / s : 0;
      let [error, uq, uqq, uxq] = [0, 0, 0, 0];
      for (let j = at + r * size; j < at + (r + 1) * size; j++) {
        const v = x[j] + m;
        let q = v * inverse + MAGIC - MAGIC;
        q = q > top ? top : q;
        q = q > 0 ? q : 0;
        const e = s * q - v;
        const b = u === null ? q : u[j] * q;
        error += u === null ? e * e : u[j] * e * e;
        uq += b;
        uqq += b * q;
        uxq += b * x[j];
      }
      room.error[r] = error;
      room.uq[r] = uq;
      room.uqq[r] = uqq;
      room.uxq[r] = uxq;
    }
  }

  return {
    room,
    search(x, at, u) {
      [block.x, block.at, block.u] = [x, at, u];
      for (let r = 0; r < runs; r++) {
        affineReference(spec, x, at + r * size, r, room, w, codes);
        affineOwn(spec, x, at + r * size, u, r, room);
      }
    },
    place(d, dmin, reach) {
      for (let r = 0; r < runs; r++) {
        room.scales[r] = code(room.ownS[r], d);
        room.mins[r] = code(room.ownM[r], dmin);
        if (reach > 0) near(r, d, dmin);
      }
      judge(d, dmin);
    },
    judge,
  };
}

/** make_qkx2_quants: scale and minimum of a run. `w` and `q` are room for its weights and codes. */
function affineReference(
  spec: AffineSearch,
  x: Float32Array,
  at: number,
  r: number,
  room: SearchRoom,
  w: Float32Array,
  q: Float32Array,
): void {
  const { size, top, widths, lift, absolute } = spec;
  let low = 0;
  let high = -Infinity;
  let power = 0;
  for (let j = at; j < at + size; j++) {
    const v = x[j];
    if (v < low) low = v;
    if (v > high) high = v;
    power = f32(power + f32(v * v));
  }
  room.refS[r] = 0;
  room.refM[r] = -low;
  if (high === low) return;
  const lifted = lift ? f32(Math.sqrt(f32(power / size))) : 0;
  let sw = 0;
  let sx = 0;
  for (let j = 0; j < size; j++) {
    w[j] = lifted + Math.abs(x[at + j]);
    sw = f32(sw + w[j]);
    sx = f32(sx + f32(w[j] * x[at + j]));
  }
  let best = 0;
  for (let step = 0; step < widths.length; step++) {
    const inverse = f32(widths[step] / f32(high - low));
    let wq = 0;
    let wqq = 0;
    let wxq = 0;
    for (let j = 0; j < size; j++) {
      const v = x[at + j];
      let code = nearest32(f32(inverse * f32(v - low)));
      code = code > top ? top : code;
      code = code > 0 ? code : 0;
      q[j] = code;
      const a = f32(w[j] * code);
      wq = f32(wq + a);
      wqq = f32(wqq + f32(a * code));
      wxq = f32(wxq + f32(a * v));
    }
    let s = f32(1 / inverse);
    let m = low;
    const det = f32(f32(sw * wqq) - f32(wq * wq));
    if (step > 0) {
      if (!(det > 0)) continue;
      s = f32(f32(f32(sw * wxq) - f32(sx * wq)) / det);
      m = f32(f32(f32(wqq * sx) - f32(wq * wxq)) / det);
      if (m > 0) {
        s = f32(wxq / wqq);
        m = 0;
      }
    }
    let error = 0;
    for (let j = 0; j < size; j++) {
      const e = f32(f32(f32(s * q[j]) + m) - x[at + j]);
      error = f32(error + f32(w[j] * (absolute ? Math.abs(e) : f32(e * e))));
    }
    if (step > 0 && !(error < best)) continue;
    best = error;
    // the next grids start where the best one does
    low = m;
    room.refS[r] = s;
    room.refM[r] = -m;
  }
}

/** Scale and minimum of the least error with weights u, over grids of several widths. */
function affineOwn(spec: AffineSearch, x: Float32Array, at: number, u: Float32Array | null, r: number, room: SearchRoom): void {
  const { size, top, own } = spec;
  let low = 0;
  let high = -Infinity;
  let su = 0;
  let ux = 0;
  let uxx = 0;
  for (let j = at; j < at + size; j++) {
    const v = x[j];
    if (v < low) low = v;
    if (v > high) high = v;
    const a = u === null ? v : u[j] * v;
    su += u === null ? 1 : u[j];
    ux += a;
    uxx += a * v;
  }
  room.su[r] = su;
  room.ux[r] = ux;
  room.ownS[r] = 0;
  room.ownM[r] = -low;
  if (high === low) return;
  let best = Infinity;
  for (const width of own) {
    const inverse = width / (high - low);
    let uq = 0;
    let uqq = 0;
    let uxq = 0;
    for (let j = at; j < at + size; j++) {
      const v = x[j];
      let q = inverse * (v - low) + MAGIC - MAGIC;
      q = q > top ? top : q;
      const b = u === null ? q : u[j] * q;
      uq += b;
      uqq += b * q;
      uxq += b * v;
    }
    const det = su * uqq - uq * uq;
    // without two different codes there is a scale alone
    let s = det > 0 ? (su * uxq - ux * uq) / det : 0;
    let m = det > 0 ? (uqq * ux - uq * uxq) / det : 1;
    if (m > 0) {
      s = uxq / uqq;
      m = 0;
    }
    const e = uxx + s * (s * uqq + 2 * (m * uq - uxq)) + m * (m * su - 2 * ux);
    if (e < best && s > 0) {
      best = e;
      room.ownS[r] = s;
      room.ownM[r] = -m;
    }
  }
}

/** Where the nearest of ascending levels changes. */
export const midpoints = (levels: Float64Array): Float64Array => levels.slice(0, -1).map((v, i) => (v + levels[i + 1]) / 2);

/** The index of the nearest of 16 ascending levels; halves go to the upper one. */
export function nearest16(bounds: Float64Array, v: number): number {
  let i = v >= bounds[7] ? 8 : 0;
  if (v >= bounds[i + 3]) i += 4;
  if (v >= bounds[i + 1]) i += 2;
  return v >= bounds[i] ? i + 1 : i;
}

function signedLoops(spec: SignedSearch): SearchLoops {
  const { runs, size, low, high, most, widths, own } = spec;
  const room = searchRoom(runs);
  const block: Block = { x: new Float32Array(0), at: 0, u: null };
  const table = spec.levels === undefined ? null : Float64Array.from(spec.levels);
  const bounds = table === null ? null : midpoints(table);

  const level = (v: number): number => {
    if (table !== null) return table[nearest16(bounds!, v)];
    const q = v + MAGIC - MAGIC;
    return q < low ? low : q > high ? high : q;
  };

  /** make_qx_quants with weights x^2. */
  function reference(x: Float32Array, at: number, extreme: number): number {
    let scale = 0;
    let best = 0;
    for (let step = 0; step < widths.length; step++) {
      const inverse = f32(widths[step] / extreme);
      let xl = 0;
      let ll = 0;
      for (let j = at; j < at + size; j++) {
        const v = x[j];
        let q = f32(inverse * v);
        q = table !== null ? level(q) : nearest32(q);
        q = q < low ? low : q > high ? high : q;
        const a = f32(v * v);
        xl = f32(xl + f32(f32(a * v) * q));
        ll = f32(ll + f32(f32(a * q) * q));
      }
      if (ll > 0 && (step === 0 || f32(xl * xl) > f32(best * ll))) {
        scale = f32(xl / ll);
        best = f32(scale * xl);
      }
    }
    return scale;
  }

  function ownScale(x: Float32Array, at: number, u: Float32Array | null, extreme: number): number {
    let scale = 0;
    let best = 0;
    for (const width of own) {
      const inverse = width / extreme;
      let uqq = 0;
      let uxq = 0;
      for (let j = at; j < at + size; j++) {
        const v = x[j];
        const q = level(inverse * v);
        const b = u === null ? q : u[j] * q;
        uqq += b * q;
        uxq += b * v;
      }
      if (uqq > 0 && uxq * uxq > best * uqq) {
        scale = uxq / uqq;
        best = scale * uxq;
      }
    }
    return scale;
  }

  function runError(r: number, s: number): number {
    const { x, u } = block;
    const from = block.at + r * size;
    const inverse = s === 0 ? 0 : 1 / s;
    let error = 0;
    for (let j = from; j < from + size; j++) {
      const q = level(x[j] * inverse);
      const e = s * q - x[j];
      error += u === null ? e * e : u[j] * e * e;
    }
    return error;
  }

  function judge(d: number): void {
    const { x, at, u } = block;
    for (let r = 0; r < runs; r++) {
      const s = d * room.scales[r];
      const inverse = s === 0 ? 0 : 1 / s;
      let [error, uqq, uxq] = [0, 0, 0];
      for (let j = at + r * size; j < at + (r + 1) * size; j++) {
        const q = level(x[j] * inverse);
        const e = s * q - x[j];
        const b = u === null ? q : u[j] * q;
        error += u === null ? e * e : u[j] * e * e;
        uqq += b * q;
        uxq += b * x[j];
      }
      room.error[r] = error;
      room.uqq[r] = uqq;
      room.uxq[r] = uxq;
    }
  }

  return {
    room,
    search(x, at, u) {
      [block.x, block.at, block.u] = [x, at, u];
      for (let r = 0; r < runs; r++) {
        const from = at + r * size;
        let extreme = 0;
        for (let j = from; j < from + size; j++) if (Math.abs(x[j]) > Math.abs(extreme)) extreme = x[j];
        const zero = Math.abs(extreme) < TINY;
        room.refS[r] = zero ? 0 : reference(x, from, extreme);
        room.ownS[r] = zero ? 0 : ownScale(x, from, u, extreme);
      }
    },
    place(d, _, reach) {
      const { scales } = room;
      for (let r = 0; r < runs; r++) {
        const q = room.ownS[r] / d + MAGIC - MAGIC;
        const middle = d === 0 ? 0 : q < -most ? -most : q > most - 1 ? most - 1 : q;
        scales[r] = middle;
        if (reach === 0) continue;
        let least = runError(r, d * middle);
        for (let i = -reach; i <= reach; i++) {
          if (i === 0 || middle + i < -most || middle + i > most - 1) continue;
          const e = runError(r, d * (middle + i));
          if (e < least) {
            least = e;
            scales[r] = middle + i;
          }
        }
      }
      judge(d);
    },
    judge,
  };
}
