// What runs beside an onnxruntime: in a child process of Node (onnxruntime-node, onnxruntime-web's WebAssembly) or in a
// page of a browser. It is text, since a child process and a page get it as such, whatever bundled this package. One
// function, `host`: (ort, provider options)
// -> { open, run, close }; a session is a number, a tensor { type, dims, data }. Times are milliseconds of the call
// alone.

/** JavaScript (ES2022, no imports) that defines `host`. */
export const HOST_SOURCE = `
function host(ort, defaults) {
  const sessions = new Map();
  let next = 0;
  // Float16 as its codes: not every channel carries a Float16Array.
  const plain = (data) =>
    typeof Float16Array === "function" && data instanceof Float16Array ? new Uint16Array(data.buffer, data.byteOffset, data.length) : data;
  const describe = (session, list) =>
    session[list === "inputs" ? "inputMetadata" : "outputMetadata"]?.map(({ name, type, shape }) => ({ name, type: type ?? "", shape: [...(shape ?? [])] }));
  return {
    async open(model, options, external) {
      const start = performance.now();
      const session = await ort.InferenceSession.create(model, {
        ...defaults, ...options, ...(external === undefined ? {} : { externalData: external }),
      });
      const id = next++;
      sessions.set(id, session);
      return {
        id, ms: performance.now() - start, inputNames: [...session.inputNames], outputNames: [...session.outputNames],
        inputs: describe(session, "inputs"), outputs: describe(session, "outputs"),
      };
    },
    async run(id, feeds, fetches) {
      const session = sessions.get(id);
      const tensors = {};
      for (const [name, { type, data, dims }] of feeds)
        // onnxruntime-node's binding reads the Float16Array that its Tensor makes of codes as empty
        tensors[name] = type === "float16" && ort.env?.versions?.node !== undefined
          ? Object.assign(new ort.Tensor("uint16", data, dims), { type })
          : new ort.Tensor(type, data, dims);
      const start = performance.now();
      const results = fetches === undefined ? await session.run(tensors) : await session.run(tensors, fetches);
      const outputs = [];
      for (const name of Object.keys(results)) {
        const tensor = results[name];
        // A result that is no tensor (a sequence, a map) has no data to compare.
        const data = tensor?.getData ? await tensor.getData() : tensor?.data;
        outputs.push([name, data === undefined ? null : { type: tensor.type, dims: [...tensor.dims], data: plain(data) }]);
      }
      return { ms: performance.now() - start, outputs };
    },
    async close(id) {
      await sessions.get(id)?.release();
      sessions.delete(id);
    },
  };
}
`;

/**
 * JavaScript of the child process: requests over the channel to `host`. argv: address of the runtime's module, options
 * as JSON.
 */
export const CHILD_SOURCE = `
${HOST_SOURCE}
for (const name of ["SIGINT", "SIGHUP"]) process.on(name, () => {});
process.on("disconnect", () => process.exit());
const [address, options] = process.argv.slice(-2);
// This package's own runtime, in the words of onnxruntime.
const own = ({ loadModel }) => ({
  InferenceSession: { create: (model) => loadModel(model) },
  Tensor: class { constructor(type, data, dims) { Object.assign(this, { type, data, dims }); } },
});
const ready = import(address).then((module) => {
  const exported = module.InferenceSession === undefined && module.loadModel === undefined ? module.default : module;
  const ort = exported.loadModel === undefined ? exported : own(exported);
  if (ort.env?.wasm) ort.env.wasm.numThreads = JSON.parse(options).threads ?? 1;
  return { ort, host: host(ort, JSON.parse(options).session ?? {}) };
});
const operations = {
  hello: async () => ({ version: (await ready).ort.env?.versions?.[JSON.parse(options).versionOf] ?? null }),
  open: async (...args) => (await ready).host.open(...args),
  run: async (...args) => (await ready).host.run(...args),
  close: async (...args) => (await ready).host.close(...args),
  memory: async () => process.resourceUsage().maxRSS * 1024,
};
process.on("message", async ({ id, op, args }) => {
  let reply;
  try {
    reply = { id, value: await operations[op](...args) };
  } catch (error) {
    // WebAssembly throws numbers.
    reply = { id, error: String(error?.message ?? error) };
  }
  try {
    process.send(reply);
  } catch (error) {
    process.send({ id, error: "the result cannot be sent: " + error.message });
  }
});
`;

/**
 * JavaScript of a page: `call(op, args)` on `host`, models fetched from where the page came from. `build` is a file of
 * onnxruntime-web.
 */
export const pageSource = (build: string): string => `
${HOST_SOURCE}
const ready = import("/ort/${build}").then((module) => {
  const ort = module.InferenceSession === undefined ? module.default : module;
  ort.env.wasm.numThreads = 1;
  ort.env.logLevel = "error";
  return { ort, host: host(ort, { executionProviders: ["webgpu"] }) };
});
const bytes = async (url) => new Uint8Array(await (await fetch(url)).arrayBuffer());
const operations = {
  async hello() {
    const adapter = await navigator.gpu?.requestAdapter();
    const { vendor = "", architecture = "", description = "", isFallbackAdapter = false } = adapter?.info ?? {};
    return {
      version: (await ready).ort.env?.versions?.web ?? null,
      adapter: adapter ? { name: [vendor, architecture, description].filter(Boolean).join(" "), software: isFallbackAdapter, half: adapter.features.has("shader-f16") } : null,
    };
  },
  async open(model, options, external) {
    const data = await Promise.all(external.map(async ({ path, url }) => ({ path, data: await bytes(url) })));
    return (await ready).host.open(await bytes(model), options, data.length === 0 ? undefined : data);
  },
  run: async (...args) => (await ready).host.run(...args),
  close: async (...args) => (await ready).host.close(...args),
};
globalThis.call = async ([op, args]) => {
  try {
    return { value: await operations[op](...args) };
  } catch (error) {
    return { error: String(error?.message ?? error) };
  }
};
`;
