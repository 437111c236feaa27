// Types of text-lines.mjs, for the tests that use it.
export interface LineImage {
  readonly width: number;
  readonly height: number;
  /** Row-major grey bytes, 0 is black. */
  readonly pixels: Uint8Array;
}
export interface LineStyle {
  readonly height?: number;
  readonly capHeight?: number;
  readonly pen?: number;
  readonly slant?: number;
  readonly tracking?: number;
  readonly ink?: number;
  readonly paper?: number;
}
export function renderLine(text: string, style?: LineStyle): LineImage;
export const TEXTS: readonly string[];
export function textLines(): { readonly text: string; readonly image: LineImage }[];
export function recogniserInput(image: LineImage): Float32Array;
export function decodeCtc(
  data: ArrayLike<number>,
  dims: readonly number[],
  dictionary: readonly string[],
): { text: string; steps: number[] };
export function readDictionary(text: string): string[];
