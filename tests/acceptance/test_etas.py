"""Place and ETA of a prompt: in the headers of its response, in the API, and on the socket that asks for it."""

from __future__ import annotations

from typing import Any

from tests.support.comfy_client import Comfy
from tests.support.lab import Lab
from tests.support.metrics import metric
from tests.support.two_users import ANNA, BEN, with_keys
from tests.support.workflows import slow


async def send(comfy: Comfy, prompt: dict[str, Any], **headers: str) -> tuple[str, str | None, list[float] | None, str]:
    """Send a prompt; (id, its place, seconds and interval, the headers that a page may read)."""
    async with comfy.http.post(
        f"{comfy.url}/prompt", json={"prompt": prompt, "client_id": "me"}, headers=comfy.headers | headers
    ) as answer:
        assert answer.status == 200, await answer.text()
        eta = answer.headers.get("X-Gateway-ETA")
        told = None
        if eta is not None:
            seconds, low, high = eta.split("; ")
            told = [float(seconds), float(low.removeprefix("low=")), float(high.removeprefix("high="))]
        exposed = answer.headers.get("Access-Control-Expose-Headers", "")
        return (await answer.json())["prompt_id"], answer.headers.get("X-Gateway-Place"), told, exposed


async def test_a_prompt_is_told_its_place_and_its_eta_once_its_like_has_run(lab: Lab) -> None:
    page = "https://page.example"
    simulator = await lab.simulator()
    gateway = await lab.gateway(simulator, cors__origins=page)
    comfy = Comfy(lab.http, gateway.url)
    await simulator.fault(lab.http, "silent")
    first, place, eta, _ = await send(comfy, slow(1, steps=2))
    assert (place, eta) == ("0; load=1", None)
    assert (await comfy.get(f"/api/jobs/{first}"))["gateway_eta"] is None
    await simulator.no_faults(lab.http)
    await comfy.entry(first)

    await simulator.fault(lab.http, "silent")
    second, place, eta, exposed = await send(comfy, slow(2, steps=2), Origin=page)
    third, place_behind, eta_behind, _ = await send(comfy, slow(3, steps=2))
    assert (place, place_behind) == ("0; load=1", "1; load=2")
    assert eta is not None
    assert eta_behind is not None
    assert eta[1] <= eta[0] <= eta[2] < 5
    assert eta_behind[0] > eta[0] > 0
    assert {"X-Gateway-ETA", "X-Gateway-Place"} <= set(exposed.split(","))

    open_jobs = await comfy.get("/gateway/api/v1/me/jobs")
    assert [job["prompt_id"] for job in open_jobs["jobs"]] == [second, third]
    page_of_one = await comfy.get("/gateway/api/v1/me/jobs", limit="1")
    assert page_of_one["next"] == second
    assert [job["place"] for job in (await comfy.get("/gateway/api/v1/me/jobs", after=second))["jobs"]] == [1]
    assert (await comfy.get(f"/gateway/api/v1/me/jobs/{third}"))["eta"]["high"] > 0
    assert (await comfy.get(f"/api/jobs/{third}"))["gateway_place"] == 1

    listener = await comfy.listen("me", "&events=interleave,eta")
    told = [(await listener.next("gateway_eta", prompt_id=each))["data"] for each in (second, third)]
    assert [(each["place"], each["load"]) for each in told] == [(0, 2), (1, 2)]
    assert told[0]["eta"]["low"] <= told[0]["eta"]["seconds"] <= told[0]["eta"]["high"]

    await simulator.no_faults(lab.http)
    await comfy.entry(third)
    ends = [await metric(lab, gateway, f'etas_total{{end="{end}"}}') for end in ("early", "within", "late")]
    assert sum(ends) == 2
    assert await metric(lab, gateway, "eta_error_count") == 2


async def test_no_eta_comes_of_what_others_ran(lab: Lab) -> None:
    gateway = await with_keys(lab)
    anna, ben = (Comfy(lab.http, gateway.url, X_API_Key=key) for key in (ANNA, BEN))
    prompt_id, *_ = await send(anna, slow(1))
    await anna.entry(prompt_id)
    prompt_id, _, eta, _ = await send(anna, slow(2))
    assert eta is not None
    await anna.entry(prompt_id)

    prompt_id, place, eta, _ = await send(ben, slow(3))
    assert (place, eta) == ("0; load=1", None)
    await ben.entry(prompt_id)
    _, _, eta, _ = await send(ben, slow(4))
    assert eta is not None
