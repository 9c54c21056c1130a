"""With API keys, a person signs in with a key once and then has the web UI, and nobody else's jobs."""

from __future__ import annotations

import json
from pathlib import Path

from playwright.async_api import Browser, Page, Response, expect

from tests.browser.ui import BLUE, Ui
from tests.browser.walks import walk_as_new_user
from tests.support.lab import Lab
from tests.support.nginx import nginx
from tests.support.two_users import ANNA, BEN, with_keys
from tests.support.workflows import slow

COOKIE = "comfyui_gateway_key"
# Host without its port, as most examples of nginx have it.
UNDER_A_PATH = "location /comfy/ { proxy_pass http://gateway/; proxy_set_header Host $host; USUAL }"
# The web UI asks for these of the host's root, wherever it is itself.
FRAMES = "/assets/images/favicon_progress"


async def sign_in(page: Page, key: str) -> None:
    """Type a key into the page that asks for it, and send it."""
    await page.locator("input[name=key]").fill(key)
    await page.locator("button[type=submit]").click()


async def test_sign_in(lab: Lab, chromium: Browser, shots: Path, tmp_path: Path) -> None:
    """Alone, then behind nginx under a path of the host: nothing goes wrong there that didn't before."""
    outside: list[str] = []
    workflow = tmp_path / "fleet.json"
    workflow.write_text(json.dumps(slow(seed=BLUE, steps=3, prefix="fleet")))

    async def use(ui: Ui) -> None:
        await ui.first_visit()
        await ui.open_file(workflow, 2)
        await ui.run()
        await ui.sees(2, BLUE)
        await ui.open_panel()
        await ui.sees_results(BLUE)
        await ui.shot("result")
        await ui.reload()
        await ui.sees_results(BLUE)

    async def without_keys(ui: Ui) -> None:
        await ui.page.goto(ui.url)
        await use(ui)

    async def with_a_key(ui: Ui) -> None:
        def note(response: Response) -> None:
            if not response.url.startswith((f"{ui.url}/", "blob:", "data:")) and FRAMES not in response.url:
                outside.append(f"{response.status} {response.url}")

        ui.page.on("response", note)
        await ui.page.goto(f"{ui.url}/")
        await expect(ui.page).to_have_url(f"{ui.url}/gateway/signin")
        await ui.shot("asked")
        await sign_in(ui.page, ANNA)
        await expect(ui.page).to_have_url(f"{ui.url}/")
        cookies = {cookie["name"]: cookie for cookie in await ui.page.context.cookies()}
        assert cookies[COOKIE]["httpOnly"]
        assert cookies[COOKIE]["sameSite"] == "Lax"
        assert cookies[COOKIE]["path"] == "/comfy"
        assert COOKIE not in await ui.page.evaluate("document.cookie")
        await use(ui)

    alone = await lab.simulator()
    gateway = await with_keys(lab, 3, server__base_path="/comfy", server__trusted_proxies="127.0.0.0/8")
    usual = await walk_as_new_user(chromium, without_keys, alone.url, shots, "alone")
    async with nginx(tmp_path / "nginx", gateway.port, {"host": UNDER_A_PATH}) as ports:
        url = f"http://127.0.0.1:{ports['host']}/comfy"
        found = await walk_as_new_user(chromium, with_a_key, url, shots, "gateway")
    assert sorted(found - usual) == []
    assert outside == []

    async def as_another(ui: Ui) -> None:
        await ui.page.goto(ui.url)
        await sign_in(ui.page, BEN)
        await expect(ui.page).to_have_url(f"{ui.url}/comfy/")
        jobs = await ui.page.evaluate("fetch('api/jobs').then(answer => answer.json())")
        assert jobs["jobs"] == []

    await walk_as_new_user(chromium, as_another, gateway.url, shots, "another")


async def test_a_wrong_key_does_not_sign_in(lab: Lab, chromium: Browser, shots: Path) -> None:
    gateway = await with_keys(lab)

    async def walk(ui: Ui) -> None:
        await ui.page.goto(ui.url)
        async with ui.page.expect_response(lambda answer: answer.request.method == "POST"):
            await sign_in(ui.page, "a-wrong-key-123456")
        await ui.page.wait_for_load_state()
        await expect(ui.page.locator("input[name=key]")).to_be_visible()
        await ui.shot("refused")
        assert COOKIE not in [cookie["name"] for cookie in await ui.page.context.cookies()]
        await ui.page.goto(ui.url)
        await expect(ui.page).to_have_url(f"{ui.url}/gateway/signin")

    await walk_as_new_user(chromium, walk, gateway.url, shots, "gateway")
