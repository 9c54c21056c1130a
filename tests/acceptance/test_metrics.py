"""Metrics of gateways that work, read as Prometheus reads them."""

from __future__ import annotations

from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from gateway.telemetry.exposition import OPEN
from tests.support.comfy_client import Comfy
from tests.support.lab import GatewayProcess, Lab, Simulator, until
from tests.support.two_users import ANNA, BOSS, with_keys
from tests.support.workflows import failing, slow, text_to_image

MODEL = "sd_xl_base_1.0.safetensors"
PREFIX = "comfyui_gateway_"


async def scraped(lab: Lab, gateway: GatewayProcess, key: str = "") -> dict[str, Metric]:
    """The metrics by their names."""
    headers = {"Accept": "application/openmetrics-text; version=1.0.0", **({"X-API-Key": key} if key else {})}
    async with lab.http.get(f"{gateway.url}/metrics", headers=headers) as answer:
        assert (answer.status, answer.headers["Content-Type"]) == (200, OPEN)
        text = await answer.text()
    return {family.name.removeprefix(PREFIX): family for family in text_string_to_metric_families(text)}


def value(families: dict[str, Metric], metric: str, suffix: str = "", **labels: str) -> float:
    """The value of a series; 0 if it is not there."""
    samples = families[metric].samples if metric in families else []
    found = [s.value for s in samples if s.name == PREFIX + metric + suffix and labels.items() <= s.labels.items()]
    return sum(found)


async def test_an_idle_gateway_shows_what_it_uses(lab: Lab) -> None:
    gateway = await lab.gateway(*await lab.simulators(2))
    families = await scraped(lab, gateway)
    series = [sample for family in families.values() for sample in family.samples]
    assert len(series) < 250
    unused = [s.name for s in series if s.name.endswith("_count") and s.value == 0]
    assert not unused
    for name in ("backend_busy_seconds", "backend_queue_pending", "catalogue_age_seconds"):
        assert {sample.labels["backend"] for sample in families[name].samples} == {"b1", "b2"}, name
    refused = {sample.labels["reason"]: sample.value for sample in families["keys_refused"].samples}
    assert refused == {"unknown": 0, "locked out": 0}, "a rate sees the first of them"
    assert value(families, "catalogue_age_seconds") < 60
    assert 0 < value(families, "data_dir_free_bytes") < value(families, "data_dir_size_bytes")
    assert value(families, "journal_lag_seconds") < 10
    for name, suffix in (("received_bytes", "_total"), ("sent_bytes", "_total")):
        assert value(families, name, suffix) > 0, name


async def test_jobs_by_model_and_whose_fault(lab: Lab) -> None:
    gateway = await with_keys(lab, simulator=("--cache-ram",), auth__metrics="key")
    comfy = Comfy(lab.http, gateway.url, **{"X-API-Key": ANNA})
    listener = await comfy.listen("c")
    simulator = lab.servers[0]
    assert isinstance(simulator, Simulator)
    async with lab.held(simulator):
        first = await comfy.prompt(text_to_image(seed=1), "c")
    await listener.end_of(first)
    await comfy.entry(await comfy.prompt(text_to_image(seed=2)))
    await comfy.entry(await comfy.prompt(failing()))
    await simulator.fault(lab.http, "oom")
    await comfy.entry(await comfy.prompt(slow(seed=77)))
    families = await scraped(lab, gateway, "key-for-metrics-1")
    for times, count in (("job_wait_seconds", 2), ("job_run_seconds", 2), ("job_total_seconds", 2)):
        assert value(families, times, "_count", model=MODEL) == count, times
        examples = [s.exemplar for s in families[times].samples if s.exemplar and s.labels["model"] == MODEL]
        assert {key for example in examples for key in example.labels} == {"prompt_id"}
    assert value(families, "job_wait_seconds", "_count", model="none") >= 2
    assert value(families, "model_loads", "_total", backend="b1") == 1, "the second job found its model in memory"
    assert value(families, "job_failures", "_total", backend="b1", fault="caller") == 1
    assert value(families, "job_failures", "_total", backend="b1", fault="backend") == 1
    assert value(families, "jobs", "_total", outcome="error") == 2
    assert value(families, "event_delay_seconds", "_count") > 0
    assert value(families, "loop_delay_seconds", "_count") > 0
    assert value(families, "sent_bytes", "_total", to="backends") > 0


async def test_a_caller_can_not_take_the_names_of_models(lab: Lab) -> None:
    gateway = await with_keys(lab, auth__metrics="key")
    comfy = Comfy(lab.http, gateway.url, **{"X-API-Key": ANNA})
    # ComfyUI ignores an input that a node class does not have.
    made_up = slow(seed=1)
    made_up["1"]["inputs"]["unet_name"] = "made\nup.safetensors"
    await comfy.entry(await comfy.prompt(made_up))
    await comfy.entry(await comfy.prompt(text_to_image(seed=2)))
    families = await scraped(lab, gateway, "key-for-metrics-1")
    for times in ("job_wait_seconds", "job_run_seconds", "job_total_seconds"):
        assert {sample.labels["model"] for sample in families[times].samples} == {"other", MODEL}, times


async def test_pending_prompts_and_busy_time_are_counted_live(lab: Lab) -> None:
    gateway = await lab.gateway(*await lab.simulators(1), probe__interval=30)
    comfy = Comfy(lab.http, gateway.url)
    running = await comfy.prompt(slow(steps=500, step_seconds=0.05))
    await comfy.running(running)
    for seed in (2, 3):
        await comfy.prompt(slow(seed))

    ends = (await scraped(lab, gateway))["jobs"].samples
    assert {(sample.labels["outcome"], sample.value) for sample in ends} == {
        ("success", 0.0),
        ("error", 0.0),
        ("cancelled", 0.0),
    }, "no job has ended"

    async def seen() -> bool:
        families = await scraped(lab, gateway)
        pending = value(families, "queue_pending"), value(families, "backend_queue_pending", backend="b1")
        return pending == (2, 2) and value(families, "backend_busy_seconds", "_total", backend="b1") > 0

    await until(seen, what="two prompts that wait, and a backend that is busy")
    await comfy.post("/interrupt", {"prompt_id": running})


async def test_a_dead_backend_runs_nothing(lab: Lab) -> None:
    simulator = await lab.simulator()
    gateway = await lab.gateway(simulator)
    comfy = Comfy(lab.http, gateway.url)
    await comfy.running(await comfy.prompt(slow(steps=500, step_seconds=0.05)))

    async def runs(count: int) -> bool:
        return value(await scraped(lab, gateway), "backend_queue_running", backend="b1") == count

    await until(lambda: runs(1), what="a probe that finds a running prompt")
    await simulator.kill()
    await until(lambda: runs(0), what="the end of it")


async def test_an_open_gateway_shows_nobody_models_or_prompts(lab: Lab) -> None:
    gateway = await with_keys(lab)
    comfy = Comfy(lab.http, gateway.url, **{"X-API-Key": ANNA})
    await comfy.entry(await comfy.prompt(text_to_image(seed=1)))
    for key in ("", "key-for-metrics-1", BOSS):
        families = await scraped(lab, gateway, key)
        samples = [sample for family in families.values() for sample in family.samples]
        assert value(families, "job_run_seconds", "_count") == 1
        assert not [s for s in samples if s.exemplar or {"model", "tenant", "prompt_id"} & s.labels.keys()]
        assert MODEL not in str(samples)
