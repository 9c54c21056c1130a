"""Signed links to a real S3 server (SeaweedFS), as the gateway gives them to two tenants."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from yarl import URL

from tests.support.lab import Lab, until
from tests.support.pictures import colour
from tests.support.seaweedfs import seaweed
from tests.support.security_world import files_below
from tests.support.tenancy import BOSS, caller, serve, write_config
from tests.support.uploads import load
from tests.support.webhook_receiver import LOCAL, receiver
from tests.support.workflows import slow


async def test_signed_links_of_two_tenants(lab: Lab, tmp_path: Path) -> None:
    async with seaweed(tmp_path / "seaweed") as server, receiver() as hook:
        told = server.settings(when="before", links="signed", link_lifetime=600, public_endpoint=server.url)
        settings = told.model_dump(mode="json", include=told.model_fields_set)
        simulator = await lab.simulator()
        gateway = await serve(lab, write_config(lab, [simulator], {}, {}, storage=settings), 1, **LOCAL)
        anna, ben = caller(lab, gateway, "anna"), caller(lab, gateway, "ben")
        links: dict[str, Any] = {}
        for name, comfy in (("anna", anna), ("ben", ben)):
            own = {"webhook": {"url": f"{hook.url}/{name}"}}
            prompt_id = await comfy.prompt(slow(len(name), prefix=name), extra_data=own)
            (image,) = comfy.images(entry := await comfy.entry(prompt_id))
            (links[name],) = entry["gateway_files"]
            data = await comfy.view(image)
            (event,) = [each for each in await hook.events(len(links)) if each.path == f"/{name}"]
            (output,) = event.event["data"]["outputs"]
            params = {**image, "redirect": "1"}
            async with lab.http.get(f"{gateway.url}/view", params=params, headers=comfy.headers) as answer:
                assert (answer.url.port, answer.status, await answer.read()) == (server.port, 200, data)
                assert (answer.headers["Content-Type"], "inline" in answer.headers["Content-Disposition"]) == (
                    "image/png",
                    True,
                )
            for url in (links[name]["url"], output["stored_url"]):
                async with lab.http.get(URL(url, encoded=True), headers={"Range": "bytes=2-5"}) as answer:
                    assert (answer.status, await answer.read()) == (206, data[2:6])
        path = urlsplit(links["ben"]["url"]).path
        for wrong in (
            links["anna"]["url"].replace(urlsplit(links["anna"]["url"]).path, path),
            links["anna"]["url"].replace("X-Amz-Expires=600", "X-Amz-Expires=601"),
            links["anna"]["url"].partition("?")[0],
        ):
            async with lab.http.get(URL(wrong, encoded=True)) as answer:
                assert answer.status == 403, wrong
        await simulator.kill()

        async def is_gone() -> bool:
            async with lab.http.get(f"{gateway.url}/readyz") as answer:
                return (await answer.json())["backends_up"] == 0

        await until(is_gone)
        async with lab.http.get(URL(links["anna"]["url"], encoded=True)) as answer:
            assert answer.status == 200
        await gateway.stop()
        for file, content in files_below(gateway.data_dir):
            assert b"X-Amz-Signature" not in content, file
        assert "X-Amz-Signature" not in gateway.log.read_text()


async def test_a_job_waits_for_a_stored_input_while_the_store_is_away(lab: Lab, tmp_path: Path) -> None:
    """Its own backend is gone. What another tenant sends is not held up."""
    async with seaweed(tmp_path / "seaweed") as server:
        told = server.settings(when="before", timeout=1.0)
        settings = told.model_dump(mode="json", include=told.model_fields_set)
        first = await lab.simulator()
        config = write_config(lab, [first, second := await lab.simulator()], {}, {}, storage=settings)
        gateway = await serve(lab, config, 2, dispatch__max_queue=1)
        anna, ben = caller(lab, gateway, "anna"), caller(lab, gateway, "ben")
        image, kept = {}, b""
        for seed in (1, 2):
            (image,) = anna.images(await anna.entry(await anna.prompt(slow(seed, prefix="annas"))))
            kept = await anna.view(image)
        boss = caller(lab, gateway, BOSS)
        jobs = (await boss.get("/api/jobs", sort_order="asc"))["jobs"]
        await (first if jobs[-1]["gateway_backend"] == "b1" else second).kill()
        await lab.backends_up(gateway, 1)
        server.process.send_signal(signal.SIGSTOP)
        try:
            waits = await anna.prompt(load(f"{image['filename']} [output]"))

            async def is_told() -> bool:
                return any(line["event"] == "stored_input_unreachable" for line in gateway.log_lines())

            await until(is_told)
            params = {**image}
            async with lab.http.get(f"{gateway.url}/view", params=params, headers=anna.headers) as answer:
                assert (answer.status, answer.headers["Retry-After"]) == (503, "5")
            assert (await ben.entry(await ben.prompt(slow(3, save=False))))["status"]["status_str"] == "success"
            assert (await anna.get("/prompt"))["exec_info"]["queue_remaining"] == 1
        finally:
            server.process.send_signal(signal.SIGCONT)
        entry = await anna.entry(waits)
        assert entry["status"]["status_str"] == "success"
        assert colour(await anna.view(anna.images(entry)[0])) == colour(kept)
