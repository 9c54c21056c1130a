// Drives comfy-ui-client, of npm: node ui_client.mjs URL SCENARIO, JSON on standard input, a line of JSON at the end.
import { writeSync } from "node:fs";
import { createRequire } from "node:module";
import { text } from "node:stream/consumers";

// The packages are where the driver is started, not where it lies.
const require = createRequire(`${process.cwd()}/`);
const { ComfyUIClient } = require("comfy-ui-client");

async function imagesOf(outputs) {
  const images = Object.values(outputs).flat();
  return Promise.all(images.map(async ({ blob }) => Buffer.from(await blob.arrayBuffer()).toString("base64")));
}

const scenarios = {
  // All on one socket, and the second half of them each on a socket of its own.
  async runTogether(url, { prompts }) {
    const connect = async (name) => {
      const client = new ComfyUIClient(new URL(url).host, `${name} ${process.pid}`);
      await client.connect();
      return client;
    };
    const half = prompts.length / 2;
    const shared = await connect("shared");
    const clients = await Promise.all(prompts.map((_, n) => (n < half ? shared : connect(n))));
    const outputs = await Promise.all(prompts.map((prompt, n) => clients[n].getImages(prompt)));
    return { results: await Promise.all(outputs.map(async (output) => ({ images: await imagesOf(output) }))) };
  },

  async refused(url, { prompt }) {
    const client = new ComfyUIClient(new URL(url).host, "refused");
    await client.connect();
    return client.getImages(prompt).then(() => ({}), (error) => ({ error: JSON.parse(error.message) }));
  },
};

const [url, name] = process.argv.slice(2);
const result = JSON.stringify(await scenarios[name](url, JSON.parse(await text(process.stdin))));
// The client logs to standard output too, and must not after the last line: so this one is written in the turn that ends.
writeSync(1, `\n${result}\n`);
process.exit(0);
