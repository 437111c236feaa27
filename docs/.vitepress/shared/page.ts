// What the pages that compute share.
import { ref } from "vue";
import { withBase } from "vitepress";

/** A file of this site. */
export async function fetched(path: string): Promise<Response> {
  const response = await fetch(withBase(path));
  if (!response.ok) throw new Error(`${path}: expected a file of this site, got status ${response.status}.`);
  return response;
}

/** Gives the visitor a file to keep. */
export function saveFile(name: string, data: BlobPart, type = "application/octet-stream"): void {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([data], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

/** One piece of work at a time: what it is ("" when none), how far it is, what went wrong last. */
export function useWork() {
  const busy = ref("");
  const share = ref(0);
  const error = ref("");
  async function work<R>(what: string, run: () => Promise<R>): Promise<R | undefined> {
    error.value = "";
    busy.value = what;
    share.value = 0;
    try {
      return await run();
    } catch (e) {
      error.value = (e as Error).message;
      return undefined;
    } finally {
      busy.value = "";
    }
  }
  const progress = (done: number, text: string): void => {
    share.value = done;
    busy.value = text;
  };
  return { busy, share, error, work, progress };
}
