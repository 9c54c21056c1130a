// Run a workflow, follow its server-sent events, and save its files: the Comfy API v2, without packages.
//
//   node v2_events.mjs [WORKFLOW [FOLDER]]
//
// From the environment: URL and KEY. Needs Node.js 18 or later.
import { mkdir, readFile, writeFile } from "node:fs/promises"
import { basename, join } from "node:path"
import { setTimeout as sleep } from "node:timers/promises"

const gateway = (process.env.URL ?? "http://127.0.0.1:8288").replace(/\/$/, "")
const headers = process.env.KEY ? { Authorization: `Bearer ${process.env.KEY}` } : {}
const workflow = process.argv[2] ?? new URL("text_to_image_api.json", import.meta.url)
const folder = process.argv[3] ?? "pictures"
const ended = ["succeeded", "failed", "canceled"]

// Return the gateway's answer. At 429 and 503 wait as long as Retry-After says, and ask again.
async function ask(path, options = {}) {
  for (let attempt = 0; attempt < 20; attempt += 1) {
    const answer = await fetch(gateway + path, { ...options, headers })
    if (answer.ok) return answer
    const said = await answer.text()
    if (![429, 503].includes(answer.status)) throw new Error(`${path}: ${answer.status} ${said}`)
    await sleep(1000 * Number(answer.headers.get("Retry-After") ?? 1))
  }
  throw new Error(`${path}: the gateway has no room`)
}

// Yield the events of one stream as [name, data].
async function* eventsOf(answer) {
  const decoder = new TextDecoder()
  let buffer = ""
  for await (const chunk of answer.body) {
    const blocks = (buffer + decoder.decode(chunk, { stream: true })).split("\n\n")
    buffer = blocks.pop()
    for (const block of blocks) {
      const fields = Object.fromEntries(block.split("\n").map((line) => line.split(/: (.*)/s)))
      if (fields.data) yield [fields.event, JSON.parse(fields.data)]
    }
  }
}

// Show a job's events until its end, and return its last status.
async function follow(id) {
  for (let attempt = 0; attempt < 20; attempt += 1) {
    try {
      for await (const [name, data] of eventsOf(await ask(`/api/v2/jobs/${id}/events`))) {
        if (name === "progress") console.log(`${Math.round(100 * data.value)} %`)
        if (name === "status") console.log(data.status)
        if (name === "status" && ended.includes(data.status)) return
      }
    } catch (error) {
      if (error.name !== "TypeError") throw error // fetch's error for a connection that was lost
    }
    await sleep(1000) // A new stream begins with the job's present state, so nothing has to be resumed.
  }
  throw new Error(`no stream of events of ${id} lasts until its end`)
}

async function main() {
  const graph = JSON.parse(await readFile(workflow, "utf8"))
  const { id } = await (await ask("/api/v2/jobs", { method: "POST", body: JSON.stringify({ workflow: graph }) })).json()
  console.log(`queued as ${id}`)
  await follow(id)
  const job = await (await ask(`/api/v2/jobs/${id}`)).json()
  if (job.status !== "succeeded") throw new Error(`the job ${job.status}: ${job.error?.message ?? ""}`)
  await mkdir(folder, { recursive: true })
  for (const output of job.outputs) {
    const path = join(folder, basename(output.name))
    const answer = await ask(`/api/v2/assets/${output.id}/content`)
    await writeFile(path, Buffer.from(await answer.arrayBuffer()))
    console.log(`saved ${path}`)
  }
}

main().catch((error) => {
  console.error(`${gateway}: ${error.message}${error.cause ? `: ${error.cause.message}` : ""}`)
  process.exitCode = 1
})
