"""Queue a workflow, show its progress from ComfyUI's WebSocket, and save its files: /ws, POST /prompt, GET /view.

    python listen.py [WORKFLOW [FOLDER]]

From the environment: URL, KEY, and LIMIT, the maximum wait for an event, in seconds. Needs websocket-client.
"""

from __future__ import annotations

import json
import os
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from pathlib import Path
from typing import Any

import websocket

URL = os.environ.get("URL", "http://127.0.0.1:8288").rstrip("/")
KEY = os.environ.get("KEY", "")
LIMIT = float(os.environ.get("LIMIT", "600"))
HEADERS = {"X-API-Key": KEY} if KEY else {}
HERE = Path(__file__).parent


def ask(path: str, body: Any = None) -> bytes:
    """Return the gateway's answer. At 429 and 503 wait as long as Retry-After says, and ask again."""
    data = None if body is None else json.dumps(body).encode()
    for _ in range(20):
        try:
            with urllib.request.urlopen(urllib.request.Request(URL + path, data, HEADERS), timeout=60) as answer:
                found: bytes = answer.read()
                return found
        except urllib.error.HTTPError as error:
            if error.code not in (429, 503):
                sys.exit(f"{path}: {error.code} {error.read().decode()}")
            time.sleep(float(error.headers.get("Retry-After", 1)))
    sys.exit(f"{path}: the gateway has no room")


def listen(socket: websocket.WebSocket, prompt_id: str) -> None:
    """Show the events of a job until its history entry can be read."""
    while True:
        message = socket.recv()
        if isinstance(message, bytes):
            continue  # A preview: 8 bytes of header, then a JPEG or PNG.
        if not message:
            sys.exit(f"the gateway closed the connection; /history/{prompt_id} tells how the job ends")
        event = json.loads(message)
        data = event["data"]
        if data.get("prompt_id") != prompt_id:
            continue
        if event["type"] == "progress":
            print(f"node {data['node']}: step {data['value']} of {data['max']}", flush=True)
        elif event["type"] == "execution_error":
            sys.exit(f"node {data['node_id']} failed: {data['exception_message']}")
        elif event["type"] == "execution_interrupted":
            sys.exit("the job was cancelled")
        elif event["type"] == "executing" and data["node"] is None:
            return


def save(prompt_id: str, folder: Path) -> None:
    """Save the files of a job that has ended."""
    entry = json.loads(ask(f"/history/{prompt_id}"))[prompt_id]
    folder.mkdir(parents=True, exist_ok=True)
    for output in entry["outputs"].values():
        for item in (item for items in output.values() for item in items):
            if isinstance(item, dict) and "filename" in item:
                query = urllib.parse.urlencode({name: item[name] for name in ("filename", "subfolder", "type")})
                path = folder / Path(item["filename"]).name
                path.write_bytes(ask(f"/view?{query}"))
                print(f"saved {path}")


def main() -> None:
    """Queue the workflow of the command line."""
    workflow = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "text_to_image_api.json"
    folder = Path(sys.argv[2]) if len(sys.argv) > 2 else Path("pictures")
    client_id = str(uuid.uuid4())
    # The socket first, then the prompt with the same client id: so no event is missed.
    address = URL.replace("http", "ws", 1) + f"/ws?clientId={client_id}"
    socket = websocket.create_connection(address, header=HEADERS, timeout=LIMIT)
    body = {"prompt": json.loads(workflow.read_text()), "client_id": client_id, "prompt_id": str(uuid.uuid4())}
    prompt_id = json.loads(ask("/prompt", body))["prompt_id"]
    print(f"queued as {prompt_id}", flush=True)
    listen(socket, prompt_id)
    socket.close()
    save(prompt_id, folder)


if __name__ == "__main__":
    try:
        main()
    except (OSError, websocket.WebSocketException) as error:
        sys.exit(f"{URL}: {error}")
