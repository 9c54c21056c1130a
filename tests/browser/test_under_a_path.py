"""The web UI behind nginx under /comfy/ of a host: sign in, run a prompt, see its picture, reload."""

from __future__ import annotations

import json
from pathlib import Path

from playwright.async_api import Browser, Response, expect

from tests.browser.test_sign_in import COOKIE, sign_in
from tests.browser.ui import BLUE, Ui
from tests.browser.walks import walk_as_new_user
from tests.support.lab import Lab
from tests.support.nginx import nginx
from tests.support.two_users import ANNA, with_keys
from tests.support.workflows import slow

# Host without its port, as most examples of nginx have it.
STRIPPED = "location /comfy/ { proxy_pass http://gateway/; proxy_set_header Host $host; USUAL }"


async def test_under_a_path(lab: Lab, chromium: Browser, shots: Path, tmp_path: Path) -> None:
    workflow = tmp_path / "fleet.json"
    workflow.write_text(json.dumps(slow(seed=BLUE, steps=3, prefix="fleet")))
    outside: list[str] = []

    async def walk(ui: Ui) -> None:
        def note(response: Response) -> None:
            if not response.url.startswith((f"{ui.url}/", "blob:", "data:")):
                outside.append(f"{response.status} {response.url}")

        ui.page.on("response", note)
        await ui.page.goto(f"{ui.url}/")
        await expect(ui.page).to_have_url(f"{ui.url}/gateway/signin")
        await sign_in(ui.page, ANNA)
        await expect(ui.page).to_have_url(f"{ui.url}/")
        cookies = {cookie["name"]: cookie for cookie in await ui.page.context.cookies()}
        assert cookies[COOKIE]["path"] == "/comfy"
        await ui.first_visit()
        await ui.open_file(workflow, 2)
        await ui.run()
        await ui.sees(2, BLUE)
        await ui.reload()
        await ui.open_panel()
        await ui.sees_results(BLUE)
        await ui.shot("reloaded")

    gateway = await with_keys(lab, 2, server__base_path="/comfy", server__trusted_proxies="127.0.0.0/8")
    async with nginx(tmp_path / "nginx", gateway.port, {"host": STRIPPED}) as ports:
        url = f"http://127.0.0.1:{ports['host']}/comfy"
        found = await walk_as_new_user(chromium, walk, url, shots, "gateway")
    assert outside == []
    assert found == set()
