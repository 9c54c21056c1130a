// Drives @saintno/comfyui-sdk: node saintno.mjs URL SCENARIO, JSON on standard input, a line of JSON at the end.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { text } from "node:stream/consumers";

import { LIMIT, until } from "./_until.mjs";

// The packages are where the driver is started, not where it lies.
const require = createRequire(`${process.cwd()}/`);
const { ComfyApi, ComfyPool, CallWrapper, EQueueMode, PromptBuilder } = require("@saintno/comfyui-sdk");

function within(promise, what, limit = LIMIT) {
  const late = new Promise((_, reject) => setTimeout(() => reject(new Error(`${what}: not within ${limit} ms`)), limit));
  return Promise.race([promise, late]);
}

async function connect(url, credentials) {
  const api = new ComfyApi(url, undefined, { credentials });
  const connected = new Promise((resolve) => api.on("connected", resolve));
  await within(api.init(3, 200).waitForReady(), "ready");
  await within(connected, "connected");
  return api;
}

async function encode(blob) {
  return Buffer.from(await blob.arrayBuffer()).toString("base64");
}

function builder(prompt) {
  return new PromptBuilder(prompt, [], ["images"]).setOutputNode("images", "2");
}

async function imagesOf(api, outputs) {
  const images = Object.values(outputs).flatMap((output) => output.images ?? []);
  return Promise.all(images.map(async (image) => encode(await api.getImage(image))));
}

// One run through the client's CallWrapper, with all that it tells. Its end is what onFinished or onFailed is told:
// what run() returns may never come (`returns` waits for that).
async function call(api, prompt, returns = false, limit = LIMIT) {
  const told = { progress: [], started: 0, pending: 0, finished: 0, failed: [] };
  const previews = [];
  const wrapper = new CallWrapper(api, builder(prompt));
  const end = new Promise((resolve) => {
    wrapper
      .onPending(() => told.pending++)
      .onStart(() => told.started++)
      .onProgress((info, promptId) => info.prompt_id === promptId && told.progress.push(info.value))
      .onPreview((blob) => previews.push(encode(blob)))
      .onFinished((output) => {
        told.finished++;
        resolve(output);
      })
      .onFailed((error) => {
        told.failed.push({ message: error.message, cause: error.cause });
        resolve(false);
      });
  });
  const run = wrapper.run();
  told.output = await within(returns ? run : end, "run", limit);
  told.previews = await Promise.all(previews);
  told.images = await imagesOf(api, told.output || {});
  return told;
}

// The same with calls that need no socket, for prompts that are over before CallWrapper listens.
async function poll(api, prompt) {
  const { prompt_id } = await api.appendPrompt(prompt);
  const entry = await until(() => api.getHistory(prompt_id));
  return { images: await imagesOf(api, entry.outputs) };
}

const scenarios = {
  async run(url, { prompts, credentials }) {
    const api = await connect(url, credentials);
    const results = [];
    for (const prompt of prompts) results.push(await call(api, prompt, true));
    return { results };
  },

  async runTogether(url, { prompts, returns, limit }) {
    const api = await connect(url);
    return { results: await Promise.all(prompts.map((prompt) => call(api, prompt, returns, limit))) };
  },

  // A pool of clients, each with a connection of its own.
  async pool(url, { prompts, clients, mode }) {
    const pool = new ComfyPool(
      Array.from({ length: clients }, () => new ComfyApi(url)),
      EQueueMode[mode],
    );
    const used = new Set();
    let ready = 0;
    pool.on("ready", () => ready++);
    await until(() => ready === clients);
    const jobs = prompts.map((prompt) => (api, index) => {
      used.add(index);
      return call(api, prompt);
    });
    const results = await within(pool.batch(jobs), "batch");
    return { results, used: used.size };
  },

  async upload(url, { path, prompt }) {
    const api = await connect(url);
    const file = readFileSync(path);
    const uploaded = await api.uploadImage(file, "from node.png", { override: true });
    const inFolder = await api.uploadImage(new Blob([file]), "node.png", { subfolder: "some/folder" });
    const input = await encode(await api.getImage(inFolder.info));
    const mask = await api.uploadMask(file, uploaded.info);
    const results = [];
    for (const { info } of [uploaded, inFolder]) {
      prompt["1"].inputs.image = info.subfolder ? `${info.subfolder}/${info.filename}` : info.filename;
      results.push(await poll(api, prompt));
    }
    return { uploaded: uploaded.info, inFolder: inFolder.info, mask: mask && mask.info, input, results };
  },

  async interrupt(url, { prompt }) {
    const api = await connect(url);
    const running = call(api, prompt);
    await until(async () => (await api.getQueue()).queue_running.length);
    // It learns of the interruption only once it has seen that the prompt runs.
    await within(new Promise((resolve) => api.on("progress", resolve)), "progress");
    await api.interrupt();
    return { results: [await running] };
  },

  async deletePending(url, { prompt, count }) {
    const api = await connect(url);
    const ids = [];
    for (let i = 0; i < count; i++) ids.push((await api.appendPrompt(prompt)).prompt_id);
    await until(async () => (await api.getQueue()).queue_running.length === count - 1);
    const last = ids[count - 1];
    const before = (await api.getQueue()).queue_pending.map((item) => item[1]);
    await api.manageQueue({ delete: [last] });
    const after = (await api.getQueue()).queue_pending.map((item) => item[1]);
    await api.interrupt();
    await until(async () => (await api.getQueue()).queue_running.length === 0);
    const histories = await api.getHistories();
    await api.clearHistory({ clear: true });
    return {
      last,
      before,
      after,
      finished: ids.map((id) => id in histories),
      cleared: Object.keys(await api.getHistories()).length === 0,
    };
  },

  async userdata(url) {
    const api = await connect(url);
    await api.storeUserData("workflows/mine.json", { a: 1 });
    const stored = await (await api.getUserData("workflows/mine.json")).json();
    const listed = await api.listUserData("workflows", true, false);
    await api.moveUserData("workflows/mine.json", "workflows/yours.json");
    const moved = await api.listUserData("workflows", true, false);
    await api.deleteUserData("workflows/yours.json");
    const deleted = await api.listUserData("workflows", true, false);
    await api.storeSetting("Some.Setting", "value");
    await api.storeSettings({ "Other.Setting": 2 });
    return { stored, listed, moved, deleted, one: await api.getSetting("Some.Setting"), all: await api.getSettings() };
  },

  async reads(url) {
    const api = await connect(url);
    const stats = await api.getSystemStats();
    return {
      ping: (await api.ping()).status,
      queue: await api.getQueue(),
      status: await api.pollStatus(),
      history: await api.getHistories(),
      stats: { system: Object.keys(stats.system).sort(), device: Object.keys(stats.devices[0]).sort() },
      os: stats.system.os,
      checkpoints: await api.getCheckpoints(),
      loras: await api.getLoras(),
      sampler: await api.getSamplerInfo(),
      classes: Object.keys(await api.getNodeDefs()).sort(),
      unknownClass: await api.getNodeDefs("NoSuchNode"),
      embeddings: await api.getEmbeddings(),
      modelTypes: await api.getModelTypes(),
      models: await api.getModels("checkpoints"),
      extensions: await api.getExtensions(),
      features: await api.getFeatures(),
      templates: await api.getWorkflowTemplates(),
      users: await api.getUserConfig(),
      free: await api.freeMemory(true, true),
      available: api.availableFeatures,
    };
  },
};

const [url, name] = process.argv.slice(2);
const result = await scenarios[name](url, JSON.parse(await text(process.stdin)));
// A pool never ends by itself.
process.stdout.write(`${JSON.stringify(result)}\n`, () => process.exit(0));
