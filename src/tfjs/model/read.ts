// A model of TensorFlow.js from a folder (Node) or an address (fetch).
import { LowbitError } from "../../../formats/core/errors.ts";
import { nodePath, statOf } from "../../files/calls.ts";
import { readFile } from "../../files/open.ts";
import { manifestOf, parseModelJson, splitGroup, type TfjsModelFile } from "./manifest.ts";

interface Source {
  readonly model: string;
  read(path: string): Uint8Array<ArrayBuffer> | Promise<Uint8Array<ArrayBuffer>>;
}

function sourceOf(source: string): Source {
  if (/^(https?|blob|data):/i.test(source)) {
    const model = /\.json([?#]|$)/i.test(source) || !/^http/i.test(source) ? source : `${source.replace(/\/?$/, "/")}model.json`;
    const read = async (path: string): Promise<Uint8Array<ArrayBuffer>> => {
      const url = new URL(path, model).href;
      const response = await fetch(url);
      if (!response.ok) throw new LowbitError("E_IO", `${url}: expected a file, got status ${response.status}. Is the address right?`);
      return new Uint8Array(await response.arrayBuffer());
    };
    return { model, read };
  }
  const path = nodePath();
  const model = /\.json$/i.test(source) && statOf(source)?.isDirectory() !== true ? source : path.join(source, "model.json");
  return { model, read: (name) => readFile(name === model ? model : path.join(path.dirname(model), name)) };
}

export interface ReadModel extends TfjsModelFile {
  /** Path or address of model.json. */
  readonly path: string;
  readonly shards: readonly string[];
}

/**
 * model.json and its weights.
 * @param source folder or path of model.json; in browsers its address
 * @throws LowbitError E_IO, E_CONTAINER
 */
export async function readTfjsModel(source: string): Promise<ReadModel> {
  const { model, read } = sourceOf(source);
  const json = parseModelJson(new TextDecoder().decode(await read(model)));
  const groups: TfjsModelFile["groups"][number][] = [];
  const shards: string[] = [];
  for (const group of manifestOf(json)) {
    const parts: Uint8Array[] = [];
    for (const path of group.paths) parts.push(await read(path));
    shards.push(...group.paths);
    const bytes = new Uint8Array(parts.reduce((n, part) => n + part.length, 0));
    let at = 0;
    for (const part of parts) {
      bytes.set(part, at);
      at += part.length;
    }
    groups.push(splitGroup(group, bytes));
  }
  return { path: model, json, groups, shards };
}
