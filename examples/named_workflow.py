"""Store a workflow under a name once, then run it with a prompt alone: PUT and POST /gateway/workflows/NAME.

    python named_workflow.py [PROMPT [PICTURE]]

From the environment: URL, KEY, and LIMIT, the maximum wait in seconds. Needs Python alone.
"""

from __future__ import annotations

import json
import os
import sys
import time
import urllib.error
import urllib.request
from email.message import Message
from pathlib import Path

URL = os.environ.get("URL", "http://127.0.0.1:8288").rstrip("/")
KEY = os.environ.get("KEY", "")
LIMIT = float(os.environ.get("LIMIT", "600"))
END = time.monotonic() + LIMIT
NAME = "lighthouse"
HERE = Path(__file__).parent


def ask(method: str, path: str, body: bytes | None = None, **more: str) -> tuple[int, Message, bytes]:
    """Return the status, the headers and the body of the gateway's answer.

    At 429 and 503 wait as long as Retry-After says, and ask again: the gateway has made no job then.
    """
    headers = {**more, **({"X-API-Key": KEY} if KEY else {})}
    request = urllib.request.Request(URL + path, body, headers, method=method)
    while True:
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return answer.status, answer.headers, answer.read()
        except urllib.error.HTTPError as error:
            if error.code not in (429, 503) or time.monotonic() > END:
                sys.exit(f"{method} {path}: {error.code} {error.read().decode()}")
            time.sleep(float(error.headers.get("Retry-After", 1)))


def main() -> None:
    """Store the workflow, show its parameters, and run it."""
    prompt = sys.argv[1] if len(sys.argv) > 1 else "a lighthouse in a storm"
    picture = Path(sys.argv[2]) if len(sys.argv) > 2 else Path("pictures", f"{NAME}.png")
    # The gateway finds the parameters in the graph. A PUT with "parameters" names others.
    _, _, said = ask("PUT", f"/gateway/workflows/{NAME}", (HERE / "text_to_image_api.json").read_bytes())
    print(f"stored {NAME} with the parameters {', '.join(json.loads(said)['parameters'])}", flush=True)
    values = json.dumps({"prompt": prompt, "width": 256, "height": 256}).encode()
    status, headers, data = ask("POST", f"/gateway/workflows/{NAME}/run", values, Accept="image/*")
    # 202: the job has not ended within run.wait_max. Wait for the same job again.
    while status == 202:
        if time.monotonic() > END:
            sys.exit(f"the job has not ended after {LIMIT:g} s")
        time.sleep(float(headers.get("Retry-After", 1)))
        status, headers, data = ask("GET", f"/gateway/run/{headers['X-Gateway-Prompt-Id']}", Accept="image/*")
    picture.parent.mkdir(parents=True, exist_ok=True)
    picture.write_bytes(data)
    print(f"saved {picture}")


if __name__ == "__main__":
    try:
        main()
    except OSError as error:
        sys.exit(f"{URL}: {error}")
