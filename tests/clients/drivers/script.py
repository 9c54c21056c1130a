"""Drives comfy-script: one socket for all prompts, and nothing but its events tells of their ends."""

from __future__ import annotations

import io
import sys
from typing import Any

from _driver import encode, main, until
from comfy_script import runtime
from comfy_script.runtime import TaskProgress, node, queue
from PIL import Image

Prompt = dict[str, Any]


def _workflow(prompt: Prompt) -> tuple[Any, Any]:
    """Call the nodes as functions, the last of them is node 2; the workflow that this makes, and its output."""

    def call(node_id: str) -> Any:
        inputs = {k: call(v[0]) if isinstance(v, list) else v for k, v in prompt[node_id]["inputs"].items()}
        return node.get(prompt[node_id]["class_type"])(**inputs)

    with runtime.Workflow(queue=False) as workflow:
        output = call("2")
    return workflow, output


def _encode(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return encode(buffer.getvalue())


def run_together(url: str, prompts: list[Prompt]) -> dict[str, Any]:
    """Queue prompts, one when the one before has been answered, and wait for all."""
    runtime.load(url)
    made = [_workflow(prompt) for prompt in prompts]
    progress: list[list[int]] = [[] for _ in made]
    previews: list[int] = [0 for _ in made]
    for n, (workflow, _) in enumerate(made):

        def count(*_: Any, n: int = n) -> None:
            previews[n] += 1

        def keep(told: TaskProgress, n: int = n) -> None:
            progress[n].append(told.value)

        task = workflow.queue()
        task.add_progress_callback(keep)
        task.add_preview_callback(count)
    results = []
    for n, (workflow, output) in enumerate(made):
        outputs = workflow.task.wait()
        images = [_encode(image) for image in output.wait().wait()] if outputs else []
        results.append({"images": images, "progress": progress[n], "previews": previews[n]})
    return {"results": results}


def cancel(url: str, prompt: Prompt) -> dict[str, Any]:
    """Cancel a prompt that runs; the client counts what is left by what its socket is told."""
    runtime.load(url)
    started: list[int] = []
    workflow, _ = _workflow(prompt)
    workflow.queue().add_progress_callback(lambda told: started.append(told.value))
    until(lambda: started)
    queue.cancel_all()
    outputs = workflow.task.wait()
    until(lambda: queue.queue_remaining == 0)
    return {"outputs": outputs}


# It prints what happens and draws bars, from a thread of its own, where the last line has to be the result.
sys.stdout = sys.stderr
main({"run_together": run_together, "cancel": cancel})
