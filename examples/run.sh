#!/usr/bin/env bash
# Run a workflow and save the picture that it makes, without polling: POST /gateway/run.
#
#   run.sh [WORKFLOW [PICTURE]]
#
# From the environment: URL, KEY, and LIMIT, the maximum wait in seconds. Needs curl, and python3 for an id.
set -euo pipefail
URL=${URL:-http://127.0.0.1:8288}
KEY=${KEY:-}
LIMIT=${LIMIT:-600}
workflow=${1:-$(dirname "$0")/workflow_api.json}
picture=${2:-pictures/run.png}

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
# curl reads the key from a file, because other users of this machine can see a command's arguments.
printf 'X-API-Key: %s\n' "$KEY" > "$tmp/key"

# If the request is sent twice, this id makes it the same job.
id=$(python3 -c 'import uuid; print(uuid.uuid4())')
printf '{"prompt": %s, "prompt_id": "%s"}' "$(cat "$workflow")" "$id" > "$tmp/body"

request=(-d "@$tmp/body" "$URL/gateway/run")
while :; do
  status=$(curl -sS -H "@$tmp/key" -H 'Accept: image/*' -D "$tmp/head" -o "$tmp/answer" -w '%{http_code}' "${request[@]}")
  case $status in
    200) break ;;
    202) request=("$URL/gateway/run/$id") ;; # The job runs on: wait for it again.
    429 | 503) ;;                            # No room at present: send the request again.
    *) echo "The gateway answered $status: $(cat "$tmp/answer")" >&2; exit 1 ;;
  esac
  [ "$SECONDS" -lt "$LIMIT" ] || { echo "$id has not ended after $LIMIT s" >&2; exit 1; }
  pause=$(tr -d '\r' < "$tmp/head" | awk 'tolower($1) == "retry-after:" {print $2}')
  sleep "${pause:-1}"
done

mkdir -p "$(dirname "$picture")"
mv "$tmp/answer" "$picture"
echo "saved $picture"
