#!/usr/bin/env bash
# Queue a workflow and save its files by ComfyUI's own routes: POST /prompt, GET /history/ID, GET /view.
#
#   queue_prompt.sh [WORKFLOW [FOLDER]]
#
# From the environment: URL, KEY, and LIMIT, the maximum wait in seconds. Needs curl 7.76 and python3, which reads JSON.
set -euo pipefail
URL=${URL:-http://127.0.0.1:8288}
KEY=${KEY:-}
LIMIT=${LIMIT:-600}
workflow=${1:-$(dirname "$0")/workflow_api.json}
folder=${2:-pictures}

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
# curl reads the key from a file, because other users of this machine can see a command's arguments.
printf 'X-API-Key: %s\n' "$KEY" > "$tmp/key"

# Write the gateway's answer to $tmp/answer, or end with its error. At 429 and 503 curl waits as long as Retry-After
# says, and tries again.
ask() {
  curl -sS --fail-with-body --retry 5 --retry-max-time "$LIMIT" -H "@$tmp/key" -o "$tmp/answer" "$@" || {
    [ ! -f "$tmp/answer" ] || echo "The gateway answered: $(cat "$tmp/answer")" >&2
    exit 1
  }
}

# If the request is sent twice, this id makes it the same job.
id=$(python3 -c 'import uuid; print(uuid.uuid4())')
printf '{"prompt": %s, "prompt_id": "%s"}' "$(cat "$workflow")" "$id" > "$tmp/body"
ask -d "@$tmp/body" "$URL/prompt"
echo "queued as $id"

# The history has no entry until the job has ended.
while ask "$URL/history/$id" && [ "$(cat "$tmp/answer")" = "{}" ]; do
  [ "$SECONDS" -lt "$LIMIT" ] || { echo "$id has not ended after $LIMIT s" >&2; exit 1; }
  sleep 1
done

# A line for each file: its query for /view, a tab, its name.
python3 - "$tmp/answer" > "$tmp/files" <<'PYTHON'
import json, os, sys, urllib.parse

(entry,) = json.load(open(sys.argv[1])).values()
if entry["status"]["status_str"] != "success":
    said = [data.get("exception_message", event) for event, data in entry["status"]["messages"]]
    sys.exit(f"the job failed: {said[-1]}")
for output in entry["outputs"].values():
    for items in output.values():
        for item in items:
            if isinstance(item, dict) and "filename" in item:
                query = {name: item[name] for name in ("filename", "subfolder", "type")}
                print(urllib.parse.urlencode(query), os.path.basename(item["filename"]), sep="\t")
PYTHON

mkdir -p "$folder"
while IFS=$'\t' read -r query name; do
  ask "$URL/view?$query"
  mv "$tmp/answer" "$folder/$name"
  echo "saved $folder/$name"
done < "$tmp/files"
