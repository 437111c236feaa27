// Renders lines of text as the grey images a text recogniser expects: white paper, dark strokes, 48 pixels high. The font is a stroke font
// drawn for this project (no font file, no licence to carry): each glyph is a few lines and elliptical arcs, drawn with a round pen and
// antialiased by distance. Not a typesetter: one line, printable characters of GLYPHS only.

/**
 * Glyphs as strokes. Units: baseline y = 0, capital height 12, x-height 8, descender -4; x from 0 to the glyph's width.
 * `x,y` is a point joined to the one before, `(cx,cy,rx,ry,from,to)` an arc in degrees (counter-clockwise from the right), `;` lifts the pen.
 */
const GLYPHS = {
  A: [9, "0,0 4.5,12 9,0 ; 1.5,4 7.5,4"],
  B: [7.5, "0,0 0,12 4,12 (4,9.2,3,2.8,90,-90) 0,6.4 ; 4,6.4 (4.2,3.2,3.3,3.2,90,-90) 0,0"],
  C: [9, "(5,6,5,6,42,318)"],
  D: [8.5, "0,0 0,12 3,12 (3,6,5.5,6,90,-90) 0,0"],
  E: [7, "7,0 0,0 0,12 7,12 ; 0,6.3 6,6.3"],
  F: [6.5, "0,0 0,12 6.5,12 ; 0,6.3 5.5,6.3"],
  G: [9.5, "(5,6,5,6,42,330) 9.5,5.6 5.6,5.6"],
  H: [8.5, "0,0 0,12 ; 8.5,0 8.5,12 ; 0,6.3 8.5,6.3"],
  I: [1, "0.5,0 0.5,12"],
  J: [5.5, "5.5,12 5.5,3 (2.75,3,2.75,3,0,-180)"],
  K: [8, "0,0 0,12 ; 7.5,12 0,4.6 ; 2.8,7.4 8,0"],
  L: [6.5, "0,12 0,0 6.5,0"],
  M: [10.5, "0,0 0,12 5.25,2 10.5,12 10.5,0"],
  N: [8.5, "0,0 0,12 8.5,0 8.5,12"],
  O: [10, "(5,6,5,6,90,450)"],
  P: [7.5, "0,0 0,12 4.2,12 (4.2,8.8,3.3,3.2,90,-90) 0,5.6"],
  Q: [10, "(5,6,5,6,90,450) ; 6,3 9.6,-1.2"],
  R: [8, "0,0 0,12 4.2,12 (4.2,8.9,3.3,3.1,90,-90) 0,5.8 ; 4,5.8 8,0"],
  S: [8, "(4,9,3.7,3,35,180) (4,9,3.7,3,180,262) (4,3.1,3.9,3.1,82,-90) (4,3.1,3.9,3.1,-90,-148)"],
  T: [9, "0,12 9,12 ; 4.5,12 4.5,0"],
  U: [8.5, "0,12 0,4 (4.25,4,4.25,4,180,360) 8.5,12"],
  V: [9, "0,12 4.5,0 9,12"],
  W: [13, "0,12 3.2,0 6.5,11 9.8,0 13,12"],
  X: [8.5, "0,0 8.5,12 ; 0,12 8.5,0"],
  Y: [9, "0,12 4.5,6 9,12 ; 4.5,6 4.5,0"],
  Z: [8, "0,12 8,12 0,0 8,0"],
  a: [6.5, "(3.3,5.2,2.9,2.8,150,0) 6.2,0 ; 6.2,4.6 3.4,4.6 (3,2.3,3,2.3,90,270) (3,2.6,3.2,2.6,270,360)"],
  b: [7, "0,12 0,0 ; (3.4,4,3.4,4,180,-180)"],
  c: [6.5, "(3.6,4,3.6,4,48,312)"],
  d: [7, "6.8,12 6.8,0 ; (3.4,4,3.4,4,0,360)"],
  e: [7, "0.2,4.3 6.8,4.3 (3.5,4.2,3.4,3.8,0,180) (3.5,4,3.4,4,180,318)"],
  f: [4.5, "1.6,0 1.6,9.6 (4,9.6,2.4,2.4,180,95) ; 0,7.8 4.2,7.8"],
  g: [7, "6.8,8 6.8,-1 (3.5,-1,3.3,3,0,-155) ; (3.4,4,3.4,4,0,360)"],
  h: [6.5, "0,12 0,0 ; 0,4.8 (3.2,4.8,3.2,3.2,180,0) 6.4,0"],
  i: [1, "0.5,0 0.5,8 ; 0.5,11 0.5,11.4"],
  j: [2.6, "2.1,8 2.1,-2 (0.1,-2,2,2,0,-85) ; 2.1,11 2.1,11.4"],
  k: [6, "0,0 0,12 ; 5.6,8 0,3 ; 2.3,5 6,0"],
  l: [1, "0.5,0 0.5,12"],
  m: [10.5, "0,0 0,8 ; 0,5.2 (2.6,5.2,2.6,2.8,180,0) 5.2,0 ; 5.2,5.2 (7.8,5.2,2.6,2.8,180,0) 10.4,0"],
  n: [6.5, "0,0 0,8 ; 0,4.8 (3.2,4.8,3.2,3.2,180,0) 6.4,0"],
  o: [7, "(3.5,4,3.5,4,90,450)"],
  p: [7, "0,8 0,-4 ; (3.4,4,3.4,4,180,-180)"],
  q: [7, "6.8,8 6.8,-4 ; (3.4,4,3.4,4,0,360)"],
  r: [4.2, "0,0 0,8 ; 0,4.6 (3.4,4.6,3.4,3.4,180,80)"],
  s: [5.8, "(2.9,6,2.6,2,30,180) (2.9,6,2.6,2,180,260) (2.9,2.05,2.8,2.05,80,-90) (2.9,2.05,2.8,2.05,-90,-150)"],
  t: [4.2, "1.6,10.6 1.6,2.2 (3.6,2.2,2,2.2,180,285) ; 0,7.8 4,7.8"],
  u: [6.5, "0,8 0,3.2 (3.2,3.2,3.2,3.2,180,360) ; 6.4,8 6.4,0"],
  v: [7, "0,8 3.5,0 7,8"],
  w: [10, "0,8 2.5,0 5,7.4 7.5,0 10,8"],
  x: [6.5, "0,0 6.5,8 ; 0,8 6.5,0"],
  y: [7, "0,8 3.6,0 ; 7,8 3.2,-1.4 (1.2,-1.4,2,2.4,0,-95)"],
  z: [6, "0,8 6,8 0,0 6,0"],
  0: [7.4, "(3.7,6,3.7,6,90,450)"],
  1: [5, "0.4,9.4 3,12 3,0"],
  2: [7.2, "(3.6,8.6,3.4,3.4,165,-20) 0,0 7.2,0"],
  3: [7, "(3.4,9.1,3.1,2.9,150,-80) 2.6,6.4 ; (3.4,3.2,3.6,3.2,85,-150)"],
  4: [7.6, "5.6,0 5.6,12 0,3.6 7.6,3.6"],
  5: [7, "6.4,12 1,12 0.5,6.4 (3.4,3.8,3.5,3.8,130,-145)"],
  6: [7.2, "(5.2,5,5,7,110,190) (3.7,3.7,3.6,3.7,180,540)"],
  7: [7, "0,12 7,12 2.4,0"],
  8: [7.2, "(3.6,9.1,3,2.9,-90,270) (3.6,3.1,3.6,3.1,90,450)"],
  9: [7.2, "(3.5,8.3,3.6,3.7,0,360) (2,7,5.1,7,10,-70)"],
  ".": [1, "0.5,0 0.5,0.4"],
  ",": [1.4, "0.9,0.5 0.9,0 0.2,-2"],
  ":": [1, "0.5,0 0.5,0.4 ; 0.5,7 0.5,7.4"],
  "-": [4, "0,4.4 4,4.4"],
  "/": [5, "0,-1 5,12.6"],
  "%": [11, "(2.4,9.2,2.4,2.8,90,450) ; (8.6,2.8,2.4,2.8,90,450) ; 2.4,0 8.6,12"],
  "+": [7, "0,4.6 7,4.6 ; 3.5,1.1 3.5,8.1"],
  " ": [3.4, ""],
};

/** Segments [x0, y0, x1, y1] of a glyph. */
function segmentsOf(strokes) {
  const segments = [];
  for (const stroke of strokes.split(";")) {
    let last;
    const to = (x, y) => {
      if (last) segments.push([last[0], last[1], x, y]);
      last = [x, y];
    };
    for (const token of stroke.trim().split(/\s+/).filter(Boolean)) {
      const n = token.replace(/[()]/g, "").split(",").map(Number);
      if (n.length === 2) to(n[0], n[1]);
      else {
        const [cx, cy, rx, ry, from, until] = n;
        const steps = Math.max(4, Math.ceil(Math.abs(until - from) / 12));
        for (let i = 0; i <= steps; i++) {
          const t = ((from + ((until - from) * i) / steps) * Math.PI) / 180;
          to(cx + rx * Math.cos(t), cy + ry * Math.sin(t));
        }
      }
    }
  }
  return segments;
}

/**
 * One line as a grey image.
 * @param {string} text characters of GLYPHS
 * @param {{ height?: number, capHeight?: number, pen?: number, slant?: number, tracking?: number, ink?: number, paper?: number }} [style]
 *   pixels: height of the image, of a capital letter, and of the pen; slant as dx/dy; tracking in font units; ink and paper 0..255
 * @returns {{ width: number, height: number, pixels: Uint8Array }} row-major, 0 is black
 */
export function renderLine(text, style = {}) {
  const { height = 48, capHeight = 27, pen = 3.2, slant = 0, tracking = 3, ink = 24, paper = 244 } = style;
  const scale = capHeight / 12;
  const margin = 3;
  const baseline = (height + capHeight * 0.82) / 2;
  const segments = [];
  let x = 0;
  for (const char of text) {
    const glyph = GLYPHS[char];
    if (glyph === undefined) throw new RangeError(`renderLine: expected characters of the font, got ${JSON.stringify(char)}`);
    for (const [x0, y0, x1, y1] of segmentsOf(glyph[1])) {
      const place = (px, py) => [margin + (x + px + slant * py) * scale, baseline - py * scale];
      segments.push([...place(x0, y0), ...place(x1, y1)]);
    }
    x += glyph[0] + tracking;
  }
  const width = Math.ceil(2 * margin + x * scale);
  const cover = new Float32Array(width * height);
  const radius = pen / 2;
  const soft = 0.7; // half the width of the soft edge: antialiasing and a little blur
  for (const [x0, y0, x1, y1] of segments) {
    const reach = radius + soft;
    const dx = x1 - x0;
    const dy = y1 - y0;
    const length2 = dx * dx + dy * dy;
    const right = Math.min(width - 1, Math.ceil(Math.max(x0, x1) + reach));
    const bottom = Math.min(height - 1, Math.ceil(Math.max(y0, y1) + reach));
    for (let py = Math.max(0, Math.floor(Math.min(y0, y1) - reach)); py <= bottom; py++)
      for (let px = Math.max(0, Math.floor(Math.min(x0, x1) - reach)); px <= right; px++) {
        const t = length2 === 0 ? 0 : Math.min(1, Math.max(0, ((px - x0) * dx + (py - y0) * dy) / length2));
        const distance = Math.hypot(px - x0 - t * dx, py - y0 - t * dy);
        const c = Math.min(1, Math.max(0, (radius + soft - distance) / (2 * soft)));
        const at = py * width + px;
        if (c > cover[at]) cover[at] = c;
      }
  }
  return { width, height, pixels: Uint8Array.from(cover, (c) => Math.round(paper + (ink - paper) * c)) };
}

/** What the lines say: words, capitals, numbers and signs as on letters, bills and labels. */
export const TEXTS = [
  "The quick brown fox jumps over",
  "the lazy dog and runs away",
  "Pack my box with five dozen",
  "jugs of good water",
  "Invoice number 20394",
  "Total amount due: 1,482.50",
  "Delivery on Monday morning",
  "Please keep this side up",
  "Flight BA 238 to London",
  "Gate 14 closes at 18:45",
  "How vexingly quick daft zebras",
  "Two driven jocks help fax my quiz",
  "Low precision numbers",
  "Eight bits are often enough",
  "Four bits need more care",
  "Sphinx of black quartz",
  "Judge my vow, said the king",
  "Room 307, second floor",
  "Open from 9:00 to 17:30",
  "Serial no. 5567-8821",
  "Made in Portugal",
  "Net weight 250 grams",
  "Best before 12/09/2027",
  "Store in a cool dry place",
  "Contains milk and wheat",
  "Press the green button",
  "Exit through the gift shop",
  "No parking at any time",
  "Speed limit 80",
  "Bridge closed to traffic",
  "Platform 6, change at York",
  "Tickets: adult 12.00",
  "Water level 3.42 metres",
  "Wind from the west, 15 knots",
  "Temperature below zero",
  "Reading room, silence please",
  "Chapter one: the journey",
  "She opened the heavy door",
  "and looked across the valley",
  "It was a bright cold day",
  "The clocks were striking",
  "Every page was blank",
  "Signed and sealed in 1874",
  "Fresh bread every day",
  "Thank you for your visit",
  "Battery 87%, 3 hours left",
  "Keep away from children",
  "Questions and answers",
];

/** The lines of TEXTS in changing styles: size, pen, slant, spacing and contrast vary from line to line, always the same way. */
export function textLines() {
  return TEXTS.map((text, i) => ({
    text,
    image: renderLine(text, {
      capHeight: 24 + (i % 4) * 1.5,
      pen: 2.4 + ((i * 7) % 5) * 0.4,
      slant: ((i * 3) % 4) * 0.06,
      tracking: 2.8 + ((i * 5) % 3) * 0.3,
      ink: 16 + ((i * 11) % 7) * 10,
      paper: 250 - ((i * 13) % 6) * 7,
    }),
  }));
}

/** The input of PP-OCR's recogniser for one line: float32 [3, 48, width] in -1..1, three equal channels. */
export function recogniserInput(image) {
  const pixels = image.width * image.height;
  const x = new Float32Array(3 * pixels);
  for (let i = 0; i < 3 * pixels; i++) x[i] = (image.pixels[i % pixels] / 255 - 0.5) / 0.5;
  return x;
}

/** PP-OCR's classes from its dictionary file: the blank, a line each, and the space. */
export function readDictionary(text) {
  return ["", ...text.replace(/\n$/, "").split(/\r?\n/), " "];
}

/** Greedy CTC: the best class of every time step, and the text they spell (repeats joined, blanks dropped). */
export function decodeCtc(data, dims, dictionary) {
  const [steps, classes] = dims.slice(-2);
  const best = [];
  let text = "";
  for (let t = 0; t < steps; t++) {
    let top = 0;
    for (let c = 1; c < classes; c++) if (data[t * classes + c] > data[t * classes + top]) top = c;
    if (top !== 0 && top !== best[t - 1]) text += dictionary[top];
    best.push(top);
  }
  return { text: text.trim(), steps: best };
}
