"""Run a workflow with the official comfy-sdk, show its progress, and save its files: the Comfy API v2.

    python v2_sdk.py [WORKFLOW [FOLDER]]

From the environment: URL and KEY. Needs comfy-sdk. The SDK itself waits as long as Retry-After says.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import httpx
from comfy_sdk import Comfy, ComfyError, JobFailed, Progress, StatusChange

URL = os.environ.get("URL", "http://127.0.0.1:8288")
KEY = os.environ.get("KEY")
HERE = Path(__file__).parent


def main() -> None:
    """Run the workflow of the command line."""
    workflow = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "text_to_image_api.json"
    folder = Path(sys.argv[2]) if len(sys.argv) > 2 else Path("pictures")
    # The SDK takes its address from this variable alone; without it, it asks Comfy Cloud.
    os.environ["COMFY_BASE_URL"] = URL
    with Comfy(api_key=KEY) as comfy:
        job = comfy.submit(comfy.workflows.from_file(workflow))
        print(f"queued as {job.id}", flush=True)
        for event in job.events():
            match event:
                case Progress(value=value):
                    print(f"{value:.0%}", flush=True)
                case StatusChange(status=status):
                    print(status, flush=True)
        folder.mkdir(parents=True, exist_ok=True)
        # result() raises JobFailed unless the job succeeded.
        for output in job.result().outputs:
            path = folder / Path(output.name).name
            output.to_file(path)
            print(f"saved {path}")


if __name__ == "__main__":
    try:
        main()
    except JobFailed as failed:
        sys.exit(f"{failed}: {failed.error.message if failed.error else ''}")
    except (OSError, ComfyError, httpx.HTTPError) as error:
        sys.exit(f"{URL}: {error}")
