"""A person at ComfyUI's web UI notices no difference between one ComfyUI and a gateway before three."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.async_api import expect

from tests.browser.ui import BLUE, GREEN, RED, Ui, colour
from tests.browser.walks import Both
from tests.support.lab import until
from tests.support.workflows import slow

PROGRESS = re.compile(r"SlowSampler\s*:\s*[1-9]\d*%")


async def open_workflow(ui: Ui, folder: Path, prompt: dict[str, Any]) -> None:
    """Open a prompt (API format) from a file; its seed stays what it is set to."""
    path = folder / "fleet.json"
    path.write_text(json.dumps(prompt))
    await ui.open_file(path, len(prompt))
    await ui.set_widget(1, "control_after_generate", "fixed")


async def run_seeds(ui: Ui, *seeds: int) -> list[str]:
    """Queue the open workflow once with each seed."""
    ids = []
    for seed in seeds:
        await ui.set_widget(1, "seed", seed)
        ids.append(await ui.run())
    return ids


async def test_three_prompts(both: Both, tmp_path: Path) -> None:
    async def walk(ui: Ui) -> None:
        await ui.open()
        await ui.shot("loaded")
        await open_workflow(ui, tmp_path, slow(steps=45, step_seconds=0.1, prefix="fleet"))
        await ui.shot("workflow")
        await ui.open_panel()
        await run_seeds(ui, BLUE, GREEN, RED)
        await expect(ui.active).to_contain_text("3 active")
        await expect(ui.jobs).to_contain_text(PROGRESS)
        await until(lambda: ui.shown(1), what="a preview")
        await ui.shot("running")
        await expect(ui.active).to_contain_text("0 active")
        # The newest is on top.
        await ui.sees_results(RED, GREEN, BLUE)
        await ui.sees(2, RED)
        await ui.shot("results")

    await both(walk)


async def test_the_next_prompt_can_be_followed_too(both: Both, tmp_path: Path) -> None:
    async def walk(ui: Ui) -> None:
        await ui.open()
        await open_workflow(ui, tmp_path, slow(steps=5, prefix="fleet"))
        await ui.open_panel()
        async with ui.held():
            await run_seeds(ui, GREEN)
            await ui.set_widget(1, "steps", 1000)
            await ui.set_widget(1, "step_seconds", 0.1)
            await run_seeds(ui, BLUE)
            await expect(ui.active).to_contain_text("2 active")
        await expect(ui.active).to_contain_text("1 active")
        await expect(ui.jobs).to_contain_text(PROGRESS)
        await ui.shot("next")
        await ui.button("Cancel current run").click()
        await expect(ui.active).to_contain_text("0 active")
        await ui.shot("cancelled")

    # With one backend the second prompt follows the first, as it does with one ComfyUI.
    await both(walk, backends=1)


async def test_interrupt(both: Both, tmp_path: Path) -> None:
    async def walk(ui: Ui) -> None:
        await ui.open()
        await open_workflow(ui, tmp_path, slow(steps=1000, step_seconds=0.1, prefix="fleet"))
        # Two more than there are backends: however many run, some wait.
        await run_seeds(ui, BLUE, GREEN, RED, BLUE, GREEN)
        await expect(ui.active).to_contain_text("5 active")
        await until(lambda: ui.shown(1), what="a preview")
        await ui.shot("queued")
        await ui.button("Cancel current run").click()
        await expect(ui.active).to_contain_text("4 active")
        await ui.shot("one-interrupted")
        await ui.button("Clear queued").click()
        await expect(ui.panel).to_contain_text(re.compile(r"(?<!\d)0\s*queued"))
        await ui.shot("queue-cleared")
        await ui.button("Interrupt all running jobs").click()
        await expect(ui.active).to_contain_text("0 active")
        await ui.set_widget(1, "steps", 2)
        await run_seeds(ui, RED)
        await ui.sees(2, RED)
        await ui.open_panel()
        await ui.sees_results(RED)
        await ui.shot("another-ran")

    await both(walk)


async def test_reload_while_a_prompt_runs(both: Both, tmp_path: Path) -> None:
    async def walk(ui: Ui) -> None:
        await ui.open()
        await open_workflow(ui, tmp_path, slow(steps=2, step_seconds=0.1, prefix="fleet"))
        await run_seeds(ui, GREEN)
        await ui.sees(2, GREEN)
        await ui.set_widget(1, "steps", 120)
        await run_seeds(ui, BLUE)
        await ui.open_panel()
        await expect(ui.jobs).to_contain_text(PROGRESS)
        await ui.shot("before")
        await ui.reload()
        await expect(ui.active).to_contain_text("1 active")
        await expect(ui.jobs).to_contain_text("Running")
        await until(lambda: ui.shown(1), what="a preview after the reload")
        await ui.shot("reloaded")
        await ui.sees(2, BLUE)
        await expect(ui.active).to_contain_text("0 active")
        await ui.sees_results(BLUE, GREEN)
        await ui.shot("finished")

    await both(walk)


async def test_upload(both: Both, tmp_path: Path) -> None:
    first, second = tmp_path / "1" / "photo.png", tmp_path / "2" / "photo.png"
    for path, seed in ((first, BLUE), (second, RED)):
        path.parent.mkdir()
        Image.new("RGB", (80, 60), colour(seed)).save(path)

    async def walk(ui: Ui) -> None:
        await ui.open()
        await ui.build("LoadImage", "ImageInvert", "SaveImage")
        await ui.upload(1, first)
        await ui.sees(1, BLUE)
        await ui.shot("uploaded")
        for _ in range(4):
            await ui.run()
        await ui.sees(3, ~BLUE)
        await ui.open_panel()
        await ui.sees_results(*[~BLUE] * 4)
        await ui.shot("ran")
        await ui.upload(1, second)
        await ui.sees(1, RED)
        assert await ui.widget(1, "image") == "photo (1).png"
        await ui.run()
        await ui.sees(3, ~RED)
        await ui.sees_results(~RED, *[~BLUE] * 4)
        await ui.shot("second-of-the-same-name")

    await both(walk)


async def test_save_a_workflow(both: Both, tmp_path: Path) -> None:
    async def walk(ui: Ui) -> None:
        await ui.open()
        await open_workflow(ui, tmp_path, slow(seed=BLUE, steps=7, step_seconds=0.01, prefix="fleet"))
        await ui.page.keyboard.press("Control+s")
        await ui.page.get_by_role("dialog").get_by_role("textbox").fill("for the fleet")
        await ui.shot("dialog")
        async with ui.page.expect_response(re.compile("/api/userdata/workflows%2Ffor%20the%20fleet.json")) as answer:
            await ui.page.keyboard.press("Enter")
        assert (await answer.value).status == 200
        tab = ui.page.get_by_test_id("topbar-workflow-tabs").filter(has_text="for the fleet")
        await expect(tab).to_be_visible()
        await ui.shot("saved")
        await ui.close_workflow("for the fleet")
        await ui.reload()
        await ui.button("Workflows (w)").click()
        await ui.shot("listed")
        async with ui.page.expect_response(re.compile("/api/userdata/workflows%2Ffor%20the%20fleet.json")) as answer:
            await ui.page.get_by_test_id("workflows-sidebar").get_by_text("for the fleet").click()
        assert (await answer.value).status == 200
        await ui.has_nodes(2)
        assert await ui.widget(1, "steps") == 7
        await ui.shot("loaded-again")
        await ui.run()
        await ui.sees(2, BLUE)

    await both(walk)


async def test_side_panels(both: Both, tmp_path: Path) -> None:
    async def walk(ui: Ui) -> None:
        await ui.open()
        await open_workflow(ui, tmp_path, slow(seed=BLUE, steps=2, prefix="fleet"))
        await ui.run()
        await ui.sees(2, BLUE)
        await ui.button("Assets (a)").click()
        await expect(ui.page.get_by_text("fleet_00001_").first).to_be_visible()
        await ui.shot("assets")
        await ui.button("Node Library (n)").click()
        await expect(ui.page.get_by_text("gwtest", exact=True).first).to_be_visible()
        await ui.shot("nodes")
        await ui.button("Model Library (m)").click()
        await ui.page.get_by_text("checkpoints", exact=True).click()
        await expect(ui.page.get_by_text("sd_xl_base_1.0")).to_be_visible()
        await ui.shot("models")
        async with ui.page.expect_response(re.compile("/internal/logs/subscribe")) as answer:
            await ui.button("Toggle Bottom Panel").click()
        assert (await answer.value).status == 200
        await expect(ui.page.get_by_test_id("terminal-root")).to_be_visible()
        await ui.shot("logs")
        await ui.button("Settings (Ctrl + ,)").click()
        await expect(ui.page.get_by_test_id("settings-dialog")).to_be_visible()
        await ui.shot("settings")

    await both(walk)
