// Drives @stable-canvas/comfyui-client: node canvas.mjs URL SCENARIO, JSON on standard input, a line of JSON at the end.
import { createRequire } from "node:module";
import { readFileSync } from "node:fs";
import { text } from "node:stream/consumers";

import { until } from "./_until.mjs";

// The packages are where the driver is started, not where it lies.
const require = createRequire(`${process.cwd()}/`);
const { Client, Workflow, plugins } = require("@stable-canvas/comfyui-client");
const WebSocket = require("ws");

async function connect(url, token) {
  const client = new Client({ api_host: new URL(url).host, WebSocket });
  if (token) client.use(new plugins.LoginAuthPlugin({ token }));
  await client.connect();
  return client;
}

async function download(result, token) {
  const urls = result.images.filter((image) => image.type === "url").map((image) => new URL(image.data));
  if (token) urls.forEach((url) => url.searchParams.set("token", token));
  const answers = await Promise.all(urls.map((url) => fetch(url)));
  return Promise.all(answers.map(async (answer) => Buffer.from(await answer.arrayBuffer()).toString("base64")));
}

// The client makes prompts of calls; a prompt's own nodes have the ids that these calls give, from 1 on.
function workflow(prompt) {
  const made = new Workflow();
  for (const node of Object.values(prompt)) made.node(node.class_type, node.inputs);
  return made;
}

async function run(client, prompt, token) {
  const progress = [];
  const result = await workflow(prompt).invoke(client, { progress: (told) => progress.push(told.value) });
  return { images: await download(result, token), progress };
}

const scenarios = {
  // All on one socket.
  async runTogether(url, { prompts, token }) {
    const client = await connect(url, token);
    const results = await Promise.all(prompts.map((prompt) => run(client, prompt, token)));
    client.close();
    return { results };
  },

  async poll(url, { prompts }) {
    const client = await connect(url);
    const results = await Promise.all(
      prompts.map(async (prompt) => {
        const result = await workflow(prompt).invoke_polling(client, { polling_ms: 50 });
        return { images: await download(result) };
      }),
    );
    client.close();
    return { results };
  },

  // It has no call that uploads; its users fetch that route with the client.
  async upload(url, { path, prompt }) {
    const client = await connect(url);
    const body = new FormData();
    body.append("image", new Blob([readFileSync(path)]), "canvas.png");
    const uploaded = await (await client.fetchApi("/upload/image", { method: "POST", body })).json();
    prompt[1].inputs.image = uploaded.name;
    const results = [await run(client, prompt)];
    client.close();
    return { uploaded, results };
  },

  // The same call interrupts what runs and deletes what waits; a deleted one tells nothing, as in ComfyUI.
  async interrupt(url, { prompt }) {
    const client = await connect(url);
    const errors = [];
    const invoked = [workflow(prompt).instance(client), workflow(prompt).instance(client)];
    for (const one of invoked) {
      await one.enqueue();
      one.wait().catch((error) => errors.push(error.message));
    }
    await until(async () => (await invoked[0].query()).running);
    for (const one of invoked.toReversed()) await one.interrupt();
    await until(async () => errors.length > 0 && (await Promise.all(invoked.map((one) => one.query()))).every((status) => status.done));
    const { History } = await client.getHistory();
    const entry = History.find((one) => one.prompt[1] === invoked[0].task_id);
    client.close();
    return { error: errors[0], status: entry.status };
  },

  async fail(url, { prompt }) {
    const client = await connect(url);
    try {
      return await run(client, prompt);
    } catch (error) {
      return { message: error.message, body: error.json };
    } finally {
      client.close();
    }
  },

  async reads(url) {
    const client = await connect(url);
    const result = {
      extensions: await client.getExtensions(),
      embeddings: await client.getEmbeddings(),
      classes: Object.keys(await client.getNodeDefs()).sort(),
      samplers: await client.getSamplers(),
      models: await client.getSDModels(),
      loras: await client.getLoRAs(),
      folders: await client.getModelFolders(),
      checkpoints: (await client.getModels("checkpoints")).map((model) => model.name),
      stats: Object.keys((await client.getSystemStats()).system).sort(),
      queue: await client.getQueue(),
      history: (await client.getHistory(1, { offset: 0 })).History.length,
      metadata: await client.viewMetadata("checkpoints", "none.safetensors").catch((error) => error.name),
      users: await client.getUserConfig(),
      settings: await client.getSettings(),
    };
    client.close();
    return result;
  },
};

const [url, name] = process.argv.slice(2);
console.log(JSON.stringify(await scenarios[name](url, JSON.parse(await text(process.stdin)))));
process.exit(0);
