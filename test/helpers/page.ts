// An image of text for tests of models that read it.
/** Dark bars on white, as a line of text is: a detector finds nothing in noise. */
export function page(height: number, width: number): { type: "float32"; dims: number[]; data: Float32Array } {
  const data = new Float32Array(3 * height * width).fill(2.2);
  for (let i = 0; i < data.length; i++) {
    const [x, y] = [(i % width) - 8, Math.floor(i / width) % height];
    const [letter, column] = [Math.floor(x / 14), x % 14];
    const inside = y >= 20 && y < 44 && x >= 0 && letter < 8 && column < 9;
    if (inside && (column < 3 || (y + letter * 5) % 11 < 3)) data[i] = -2;
  }
  return { type: "float32", dims: [1, 3, height, width], data };
}
