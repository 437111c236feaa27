// Long work on the calling thread lets others in: between its parts the event loop has a turn.

/** How long the event loop waits for its turn: a frame, ms. */
export const TURN_MS = 16;

/** The next turn of the event loop: timers, input and messages come first. */
export function turn(): Promise<void> {
  const { setImmediate, MessageChannel: Channel } = globalThis as unknown as {
    setImmediate?: (resolve: () => void) => void;
    MessageChannel?: new () => { port1: { onmessage: (() => void) | null; close(): void }; port2: { postMessage(message: null): void } };
  };
  if (setImmediate !== undefined) return new Promise((resolve) => setImmediate(resolve));
  if (Channel === undefined) return Promise.resolve();
  return new Promise((resolve) => {
    const { port1, port2 } = new Channel();
    port1.onmessage = () => {
      port1.close();
      resolve();
    };
    port2.postMessage(null);
  });
}
