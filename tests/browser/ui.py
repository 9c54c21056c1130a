"""ComfyUI's web UI as a test sees it: a page of a real browser, and all that went wrong in it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from pathlib import Path
from typing import Any

from playwright.async_api import ConsoleMessage, FileChooser, Locator, Page, Response, TimeoutError, expect

from tests.support.lab import until

Colour = tuple[int, int, int]
Held = Callable[[], AbstractAsyncContextManager[None]]
# Where screenshots of each test go, below; they take the browser a second each.
SHOTS = os.environ.get("BROWSER_SHOTS")
BLUE, GREEN, RED = 0x2080F0, 0x20C040, 0xE03020

# An <img> that has arrived, as one pixel: what the user sees of it, whatever format it travelled in.
_PIXEL = """image => {
    if (!image || !image.complete || !image.naturalWidth) return null
    const canvas = document.createElement('canvas')
    canvas.width = canvas.height = 1
    const context = canvas.getContext('2d')
    context.drawImage(image, 0, 0, 1, 1)
    return [...context.getImageData(0, 0, 1, 1).data].slice(0, 3)
}"""
_CHANGING = (
    (re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"), "ID"),
    (re.compile(r"\b0\.\d+|\b\d{10,}"), "NUMBER"),
    (re.compile(r"(_\d{5}_)~\w+"), r"\1"),
    (re.compile(r"\n\s+at .*", re.DOTALL), ""),
)


class Ui:
    """The web UI in one tab.

    Attributes:
        held: lets no job take a further step meanwhile.
    """

    def __init__(self, page: Page, url: str, shots: Path, kind: str, held: Held = nullcontext) -> None:
        self.page = page
        self.held = held
        self.url = url
        self.troubles: set[str] = set()
        self._shots = shots
        self._kind = kind
        self._taken = 0
        page.on("console", self._on_console)
        page.on("pageerror", lambda error: self._trouble(f"page error: {error}"))
        page.on("response", self._on_response)

    # -- what goes wrong -----------------------------------------------------------------------------------------

    def _trouble(self, text: str) -> None:
        text = text.replace(self.url, "")
        for pattern, same in _CHANGING:
            text = pattern.sub(same, text)
        self.troubles.add(text)

    def _on_console(self, message: ConsoleMessage) -> None:
        place = message.location.get("url", "")
        # What the UI asks of the Internet is not the server's doing.
        if message.type == "error" and (place.startswith(self.url) or not place):
            self._trouble(f"console: {message.text} ({place})")

    def _on_response(self, response: Response) -> None:
        if response.status >= 400 and response.url.startswith(self.url):
            self._trouble(f"{response.status} {response.request.method} {response.url}")

    # -- what the user does --------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Go to the UI for the first time."""
        await self.page.goto(self.url)
        await self.first_visit()

    async def first_visit(self) -> None:
        """A new user is shown the templates first, and closes them."""
        await self.ready()
        templates = self.page.get_by_role("heading", name="All Templates")
        await expect(templates).to_be_visible()
        await self.page.keyboard.press("Escape")
        await expect(templates).to_be_hidden()

    async def reload(self) -> None:
        """Load the page again."""
        await self.page.reload()
        await self.ready()

    async def ready(self) -> None:
        """Wait until the UI can be used."""
        await self.page.wait_for_function("() => window.app?.graph && window.app.extensionManager")
        await expect(self.run_button).to_be_visible()
        await expect(self.page.locator("#splash-loader")).to_have_count(0)

    async def open_file(self, path: Path, nodes: int) -> None:
        """Open a workflow file, and wait for its nodes."""
        await self.page.locator("#comfy-file-input").set_input_files(path)
        await self.has_nodes(nodes)

    async def build(self, *classes: str) -> None:
        """Put nodes on the canvas, each linked to the one before; their ids are 1, 2, ..."""
        await self.page.evaluate(
            """classes => {
                const nodes = classes.map(name => LiteGraph.createNode(name))
                nodes.forEach((node, index) => {
                    node.pos = [100 + 350 * index, 130]
                    app.graph.add(node)
                    if (index) nodes[index - 1].connect(0, node, 0)
                })
            }""",
            classes,
        )

    async def upload(self, node: int, path: Path) -> None:
        """Press a node's upload button and choose a file."""
        chooser = await self._choose_file(node)
        async with self.page.expect_response(re.compile("/api/upload/image")):
            await chooser.set_files(path)

    async def _choose_file(self, node: int) -> FileChooser:
        """A node that is still being laid out moves away under the pointer: then press again."""
        for _ in range(9):
            try:
                async with self.page.expect_file_chooser(timeout=2_000) as chooser:
                    await self._click_widget(node, "upload")
                return await chooser.value
            except TimeoutError:
                continue
        raise AssertionError("no file chooser opens")

    async def close_workflow(self, name: str) -> None:
        """Close a workflow's tab."""
        tab = self.page.locator(".workflow-tab").filter(has_text=name)
        await tab.hover()
        await tab.get_by_test_id("close-workflow-button").click()
        await expect(tab).to_have_count(0)

    async def set_widget(self, node: int, name: str, value: Any) -> None:
        """Give a node's widget a value."""
        await self.page.evaluate(
            """([node, name, value]) => {
                const widget = app.graph.getNodeById(node).widgets.find(widget => widget.name === name)
                widget.value = value
                widget.callback?.(value)
            }""",
            [node, name, value],
        )

    async def run(self) -> str:
        """Press Run; the prompt's id."""
        async with self.page.expect_response(lambda r: r.url.endswith("/api/prompt")) as answer:
            await self.run_button.click()
        found = await (await answer.value).json()
        return str(found["prompt_id"])

    async def _click_widget(self, node: int, name: str) -> None:
        """Click a widget that is drawn on the canvas."""
        # A widget has no place before it is drawn.
        place = await self.page.wait_for_function(
            """([id, name]) => {
                const node = app.graph.getNodeById(id)
                const widget = node.widgets.find(widget => widget.name === name)
                if (!widget.last_y) return null
                return app.canvasPosToClientPos([node.pos[0] + node.size[0] / 2, node.pos[1] + widget.last_y + 10])
            }""",
            arg=[node, name],
        )
        x, y = await place.json_value()
        await self.page.mouse.click(x, y)

    # -- what the user sees --------------------------------------------------------------------------------------

    @property
    def run_button(self) -> Locator:
        """The blue one."""
        return self.page.get_by_test_id("queue-button")

    @property
    def active(self) -> Locator:
        """How many jobs there are; opens the queue panel."""
        return self.page.get_by_test_id("queue-overlay-toggle")

    @property
    def panel(self) -> Locator:
        """The queue panel, or what is shown of it."""
        return self.page.get_by_test_id("queue-progress-overlay")

    @property
    def jobs(self) -> Locator:
        """The jobs in the open queue panel."""
        return self.page.get_by_test_id("job-assets-list")

    async def open_panel(self) -> None:
        """Open the queue panel."""
        await self.active.click()
        await expect(self.jobs).to_be_visible()

    def button(self, name: str) -> Locator:
        """A button by its name."""
        return self.page.get_by_role("button", name=name, exact=True)

    async def has_nodes(self, count: int) -> None:
        """Wait until the canvas has so many nodes."""
        await self.page.wait_for_function("count => window.app.graph.nodes.length === count", arg=count)

    async def widget(self, node: int, name: str) -> Any:
        """A widget's value."""
        return await self.page.evaluate(
            "([id, name]) => app.graph.getNodeById(id).widgets.find(widget => widget.name === name).value",
            [node, name],
        )

    async def shown(self, node: int) -> Colour | None:
        """The colour of the picture that a node shows."""
        pixel = await self.page.evaluate(f"id => ({_PIXEL})(app.graph.getNodeById(id)?.imgs?.at(-1))", node)
        return None if pixel is None else tuple(pixel)

    async def pictures(self) -> list[Colour | None]:
        """The colours of the pictures in the queue panel, top to bottom."""
        pixels = await self.jobs.locator("img").evaluate_all(f"images => images.map({_PIXEL})")
        return [None if pixel is None else tuple(pixel) for pixel in pixels]

    async def sees(self, node: int, seed: int) -> None:
        """Wait until a node shows the image of a seed."""

        async def look() -> bool:
            return like(await self.shown(node), colour(seed))

        await until(look, what=f"#{seed & 0xFFFFFF:06x} in node {node}")

    async def sees_results(self, *seeds: int) -> None:
        """Wait until the queue panel shows the images of these seeds, and no others."""

        async def look() -> bool:
            found = await self.pictures()
            return len(found) == len(seeds) and all(map(like, found, map(colour, seeds)))

        await until(look, what=f"the images of {seeds} in the queue panel")

    async def shot(self, name: str, *, anyway: bool = False) -> None:
        """A screenshot, if somebody will look at it; `anyway`, if nobody asked for any."""
        self._taken += 1
        if not (anyway or SHOTS):
            return
        path = self._shots / f"{self._kind}-{self._taken}-{name}.png"
        await self.page.screenshot(path=path, animations="disabled")


def colour(seed: int) -> Colour:
    """The colour of the image that a seed makes."""
    return (seed >> 16 & 255, seed >> 8 & 255, seed & 255)


def like(found: Colour | None, expected: Colour, tolerance: int = 6) -> bool:
    """Whether a colour is the one that is meant; lossy pictures are a little off."""
    return found is not None and all(abs(a - b) <= tolerance for a, b in zip(found, expected, strict=True))
