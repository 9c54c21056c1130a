"""The routes and commands of webhooks: an owner's endpoints, and nobody else's."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import jsonschema_rs

from tests.support.commands import command
from tests.support.keys_api import audit
from tests.support.lab import GatewayProcess, Lab
from tests.support.uploads import ANNA, BEN, BOSS, with_keys
from tests.support.webhook_api import Api
from tests.support.webhook_receiver import LOCAL, receiver
from tests.support.workflows import failing, slow

SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "webhook-events.schema.json").read_text())


async def test_an_owner_makes_changes_and_deletes_endpoints(lab: Lab, tmp_path: Path) -> None:
    async with receiver() as hook:
        gateway = await with_keys(lab, await lab.simulator(), **LOCAL)
        anna, ben, boss = (Api(lab, gateway, key) for key in (ANNA, BEN, BOSS))
        secret_url = f"{hook.url}/services/T012345678901234567/x?token=hunter2"
        status, made = await anna("POST", "", {"url": secret_url, "description": "renders", "events": ["job.failed"]})
        assert status == 201
        secret, id_ = made.pop("secret"), made["id"]
        assert secret.startswith("whsec_")
        assert made["url"] == f"{hook.url}/services/T012…/x?…"
        assert (made["events"], made["state"], made["source"]) == (["job.failed"], "enabled", "api")
        assert await anna("GET") == (200, {"webhooks": [made]})
        assert await anna("GET", f"/{id_}") == (200, made)
        assert await boss("GET", "?tenant=anna") == (200, {"webhooks": [made]})
        assert await ben("GET") == (200, {"webhooks": []})
        for method, path in (
            *((method, f"/{id_}") for method in ("GET", "DELETE")),
            *(("POST", f"/{id_}/{action}") for action in ("rotate", "test")),
            ("GET", f"/{id_}/deliveries"),
        ):
            assert (await ben(method, path))[0] == 404, (method, path)
        assert (await ben("PATCH", f"/{id_}", {"state": "disabled"}))[0] == 404

        status, changed = await anna("PATCH", f"/{id_}", {"events": ["job.succeeded"], "description": ""})
        assert (status, changed["events"], changed["description"]) == (200, ["job.succeeded"], "")
        status, tested = await anna("POST", f"/{id_}/test")
        assert status == 202
        (got,) = await hook.events(1)
        assert got.id == tested["event_id"]
        assert got.path == secret_url.removeprefix(hook.url)
        assert got.event["type"] == "webhook.test"
        assert got.is_signed_with(secret)
        status, rotated = await anna("POST", f"/{id_}/rotate")
        assert status == 200
        assert rotated["old_secret_until"] is not None
        await anna("POST", f"/{id_}/test")
        got = (await hook.events(2))[1]
        assert got.is_signed_with(secret)
        assert got.is_signed_with(rotated["secret"])

        assert (await boss("PATCH", f"/{id_}?tenant=anna", {"state": "disabled"}))[1]["reason"] == "owner"
        assert (await anna("PATCH", f"/{id_}", {"state": "enabled"}))[1]["state"] == "enabled"
        assert await anna("DELETE", f"/{id_}") == (200, {"deleted": id_})
        assert (await anna("GET", f"/{id_}"))[0] == 404
        lines = {name: audit(gateway, f"webhook_{name}") for name in ("created", "rotated", "disabled", "deleted")}
        assert {name: [(line["what"], line["who"]) for line in found] for name, found in lines.items()} == {
            "created": [(id_, "anna")],
            "rotated": [(id_, "anna")],
            "disabled": [(id_, "boss")],
            "deleted": [(id_, "anna")],
        }
        assert lines["disabled"][0]["whose"] == "anna"
        log = gateway.log.read_text()
        assert "hunter2" not in log
        assert secret not in log


async def test_what_is_refused(lab: Lab) -> None:
    gateway = await with_keys(lab, await lab.simulator(), webhooks__max_endpoints=1)
    api = Api(lab, gateway, ANNA)
    url = "https://hooks.example/hunter2?token=hunter2"
    for body, type_, said in (
        ({}, "invalid_body", '"url" must be a text'),
        ({"url": url, "secret": "hunter2"}, "invalid_body", "there are: url, events, description"),
        ({"url": url, "events": []}, "invalid_body", "a list of one or more of job.queued"),
        ({"url": url, "events": ["backend.down"]}, "invalid_body", "a list of one or more of job.queued"),
        ({"url": url, "description": "x" * 201}, "invalid_body", "at most 200 characters"),
        ({"url": url, "description": "a\nb"}, "invalid_body", "one line"),
        ({"url": "https://10.0.0.1/hunter2"}, "invalid_webhook", "not public"),
        ({"url": "http://hooks.example/hunter2"}, "invalid_webhook", "https://"),
    ):
        status, answer = await api("POST", "", body)
        assert (status, answer["error"]["type"]) == (400, type_), answer
        assert said in answer["error"]["details"]
        assert "hunter2" not in json.dumps(answer)
    id_, _ = await api.make(url)
    status, answer = await api("POST", "", {"url": url})
    assert (status, answer["error"]["type"]) == (409, "too_many_webhooks")
    for path, body in (
        ("", {"state": "gone"}),
        ("/replay", {}),
        ("/replay", {"since": "yesterday"}),
        ("/replay", {"since": 10**400}),
    ):
        status, answer = await api("PATCH" if not path else "POST", f"/{id_}{path}", body)
        assert (status, answer["error"]["type"]) == (400, "invalid_body"), answer
    for query in ("limit=0", "limit=x", "state=x", f"after={'9' * 5000}.x"):
        assert (await api("GET", f"/{id_}/deliveries?{query}"))[0] == 400, query
    assert (await api("POST", "/events/evt_nothing/replay"))[0] == 404
    status, answer = await api.prompt({"prompt": slow(), "extra_data": {"webhook": {"url": "http://a/hunter2"}}})
    assert (status, answer["error"]["type"]) == (400, "invalid_webhook")
    assert answer["error"]["extra_info"] == {"input_name": "extra_data.webhook.url"}
    assert answer["node_errors"] == {}
    (refused,) = [line for line in gateway.log_lines() if line["event"] == "prompt_refused"]
    assert (refused["error"], refused["input_name"]) == ("invalid_webhook", "extra_data.webhook.url")


async def test_a_tenant_sends_a_few_test_events_a_minute(lab: Lab) -> None:
    async with receiver() as hook:
        gateway = await with_keys(lab, await lab.simulator(), server__base_path="/comfy", **LOCAL)
        anna, ben = (Api(lab, gateway, key) for key in (ANNA, BEN))
        ids = {each: (await each("POST", "", {"url": hook.url}))[1]["id"] for each in (anna, ben)}
        # One that there is not counts nothing.
        for path in ("/we_x/test", f"/{ids[ben]}/test"):
            status, unknown = await anna("POST", path)
            assert (status, unknown["error"]["type"]) == (404, "unknown_webhook")
            assert unknown["error"]["details"].count("/comfy/gateway/api/v1/me/webhooks") == 2
        for _ in range(10):
            assert (await anna("POST", f"/{ids[anna]}/test"))[0] == 202
        # An admin who sends one for the tenant takes one of the tenant's. Other tenants have their own.
        url = f"{gateway.url}/gateway/api/v1/me/webhooks/{ids[anna]}/test"
        for key, query in ((ANNA, ""), (BOSS, "?tenant=anna")):
            async with lab.http.post(url + query, headers={"X-API-Key": key}) as answer:
                assert (answer.status, (await answer.json())["error"]["type"]) == (429, "limit_reached")
                assert 1 <= int(answer.headers["Retry-After"]) <= 6
        assert (await ben("POST", f"/{ids[ben]}/test"))[0] == 202


async def test_events_of_jobs_fit_the_schema_and_are_listed_and_replayed(lab: Lab) -> None:
    check = jsonschema_rs.validator_for(SCHEMA)
    async with receiver() as hook, receiver() as own:
        gateway = await with_keys(lab, await lab.simulator(), **LOCAL)
        anna, ben = Api(lab, gateway, ANNA), Api(lab, gateway, BEN)
        began = time.time()
        every = ["job.queued", "job.started", "job.succeeded", "job.failed", "job.cancelled"]
        id_, _ = await anna.make(hook.url, events=every)
        extra = {"webhook": {"url": f"{own.url}/x", "events": ["job.succeeded"]}, "metadata": {"order": 4711}}
        status, answer = await anna.prompt({"prompt": slow(steps=1), "extra_data": extra})
        assert status == 200, answer
        prompt_id = answer["prompt_id"]
        await anna.prompt({"prompt": failing()})
        await ben.prompt({"prompt": slow(steps=1)})
        got = await hook.events(6)
        for each in got:
            check.validate(each.event)
            assert len(each.body) < 20_000
        by_type = {
            each.event["type"]: each.event["data"] for each in got if each.event["data"]["prompt_id"] == prompt_id
        }
        assert set(by_type) == {"job.queued", "job.started", "job.succeeded"}
        assert by_type["job.succeeded"]["metadata"] == {"order": 4711}
        outputs = by_type["job.succeeded"]["outputs"]
        assert [output["node_id"] for output in outputs]
        for output in outputs:
            async with lab.http.get(gateway.url + output["url"], headers={"X-API-Key": ANNA}) as file:
                assert len(await file.read()) == output["bytes"]
        (failed,) = [each.event["data"] for each in got if each.event["type"] == "job.failed"]
        assert failed["error"]["node_type"] == "FailNode"
        (told,) = await own.events(1)
        assert told.event["type"] == "job.succeeded"
        assert "webhook-signature" not in told.headers

        listed = await anna.deliveries(f"/{id_}/deliveries", state="delivered")
        assert {each["webhook"] for each in listed} == {id_}
        everything = (await anna("GET", "/deliveries"))[1]["deliveries"]
        assert next(each for each in everything if each["webhook"] is None)["prompt_id"] == prompt_id
        assert (await ben("GET", "/deliveries"))[1]["deliveries"] == []
        page = (await anna("GET", "/deliveries?limit=2"))[1]
        rest = (await anna("GET", f"/deliveries?after={page['next']}"))[1]["deliveries"]
        assert page["deliveries"] + rest == everything

        first = got[0]
        assert await anna("POST", f"/events/{first.id}/replay") == (202, {"replayed": 1})
        again = (await hook.events(7))[-1]
        assert (again.id, again.body) == (first.id, first.body)
        assert (await ben("POST", f"/events/{first.id}/replay"))[0] == 404
        assert await anna("POST", f"/{id_}/replay", {"since": began - 5}) == (202, {"replayed": 6})
        await hook.events(13)
        assert await anna("POST", f"/{id_}/replay", {"since": 0, "until": began - 60}) == (202, {"replayed": 0})


async def test_an_endpoint_of_the_file_is_changed_there_alone(lab: Lab) -> None:
    secret = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
    async with receiver() as hook:
        boss = {"name": "boss", "key": BOSS, "role": "admin"}
        endpoint = {"name": "ops", "tenant": "anna", "url": hook.url, "secret": "${HOOK_SECRET}"}
        other = {**endpoint, "name": "keyless", "tenant": "keyless"}
        config = {
            "auth": {"keys": [{"name": "anna", "key": ANNA}, {**boss, "tenant": "anna"}]},
            "webhooks": {"allow_http": True, "allow_networks": ["127.0.0.0/8"], "endpoints": [endpoint, other]},
        }
        path = lab.directory / "gateway.yaml"
        path.write_text(json.dumps(config))
        gateway = GatewayProcess(
            lab.directory / "data", [], ("--config", str(path), "--backend", "http://127.0.0.1:1"), {}
        )
        gateway.environment["HOOK_SECRET"] = secret
        lab.servers.append(gateway)
        await gateway.start()
        anna = Api(lab, gateway, ANNA)
        (listed,) = (await anna("GET"))[1]["webhooks"]
        id_ = listed["id"]
        assert (listed["source"], listed["description"]) == ("config", "ops")
        assert listed["events"] == ["job.succeeded", "job.failed", "job.cancelled"]
        status, theirs = await Api(lab, gateway, BOSS)("GET", "?tenant=keyless")
        assert (status, theirs["webhooks"][0]["description"]) == (200, "keyless")
        for method, path_, body in (
            ("PATCH", "", {"events": ["job.failed"]}),
            ("DELETE", "", None),
            ("POST", "/rotate", None),
        ):
            status, answer = await anna(method, f"/{id_}{path_}", body)
            assert (status, answer["error"]["type"]) == (409, "webhook_refused")
            assert "webhooks.endpoints" in answer["error"]["details"]
        for state in ("disabled", "enabled"):
            assert (await anna("PATCH", f"/{id_}", {"state": state}))[1]["state"] == state
        await anna("POST", f"/{id_}/test")
        assert (await hook.events(1))[0].is_signed_with(secret)
        assert secret not in gateway.log.read_text()
        # A user of the admin's tenant, and an admin in the place of a tenant, may choose what users may.
        down = {"events": ["backend.down"]}
        made, _ = await Api(lab, gateway, BOSS).make(hook.url, **down)
        for api, path_, status in ((anna, f"/{made}", 400), (Api(lab, gateway, BOSS), f"/{made}", 200)):
            assert (await api("PATCH", path_, down))[0] == status
        assert (await anna("POST", "", {"url": hook.url, **down}))[0] == 400
        assert (await Api(lab, gateway, BOSS)("POST", "?tenant=anna", {"url": hook.url, **down}))[0] == 400


async def test_a_gateway_that_delivers_none_says_so(lab: Lab) -> None:
    gateway = await with_keys(lab, "http://127.0.0.1:1", up=0, webhooks__enabled="false")
    anna = Api(lab, gateway, ANNA)
    assert (await anna("GET"))[1]["error"]["type"] == "webhooks_off"
    extra = {"webhook": {"url": "https://hooks.example/"}}
    status, answer = await anna.prompt({"prompt": slow(), "extra_data": extra})
    assert (status, answer["error"]["type"]) == (400, "invalid_webhook")
    assert "webhooks.enabled" in answer["error"]["details"]


async def test_the_commands(lab: Lab, tmp_path: Path) -> None:
    async with receiver() as hook:
        gateway = await with_keys(lab, await lab.simulator(), **LOCAL)

        async def hooks(*arguments: str, key: str = ANNA) -> tuple[int, str, str]:
            environment = {"COMFYUI_KEY": key}
            return await command("webhooks", *arguments, "--url", gateway.url, cwd=tmp_path, environment=environment)

        code, out, error = await hooks("create", f"{hook.url}/x?token=hunter2", "--event", "job.failed")
        assert code == 0, error
        id_, secret = out.split()
        code, listed, _ = await hooks("list")
        assert code == 0
        assert listed.splitlines()[1].split()[:4] == [id_, f"{hook.url}/x?…", "job.failed", "enabled"]
        code, event_id, _ = await hooks("test", id_)
        assert code == 0
        (got,) = await hook.events(1)
        assert got.id == event_id.strip()
        assert got.is_signed_with(secret)
        await Api(lab, gateway, ANNA).deliveries(state="delivered")
        code, out, _ = await hooks("deliveries", "--state", "delivered")
        assert code == 0
        assert re.fullmatch(rf"{got.id} +\S+Z +webhook\.test +- +{id_} +delivered +1 +204 +-", out.splitlines()[1])
        assert await hooks("replay", got.id) == (0, "1 will be sent again\n", "")
        assert (await hook.events(2))[1].id == got.id
        code, rotated, _ = await hooks("rotate", id_)
        assert (code, rotated.startswith("whsec_")) == (0, True)
        assert rotated.strip() != secret
        assert await hooks("disable", id_, "--tenant", "anna", key=BOSS) == (0, f"{id_} is disabled\n", "")
        code, _, error = await hooks("replay", id_, "--since", "2026-01-01")
        assert (code, "disabled" in error) == (1, True)
        assert (await hooks("delete", id_))[:2] == (0, f"{id_} is deleted\n")
        code, _, error = await hooks("delete", id_, key=BEN)
        assert (code, "There is no such endpoint" in error) == (1, True)
        assert (await hooks("replay", id_))[0] == 2
