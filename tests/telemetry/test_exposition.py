"""The text of the metrics, as Prometheus reads it."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.exposition import generate_latest as generate_open
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_open
from prometheus_client.parser import text_string_to_metric_families as read_plain

from gateway.telemetry.exposition import OPEN, PLAIN, content_type_for, pieces
from gateway.telemetry.metrics import Metrics, one
from gateway.telemetry.readings import number

PROMETHEUS = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,application/openmetrics-text;version=0.0.1;"
    "q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)
ODD = 'a "name" \\ with\nall'


def busy(*, by_model: bool = False, backends: int = 2, models: int = 2) -> Metrics:
    """Metrics in use."""
    metrics = Metrics(by_model=by_model)
    for n in range(backends):
        metrics.backend_up.labels(f"b{n}").set(1)
        metrics.probe_seconds.labels(f"b{n}", "ok").observe(0.01)
        metrics.jobs.labels("success", f"b{n}").inc()
        metrics.vram_free.labels(f"b{n}", "0").set(5.1e9)
    metrics.backend_pending.read = lambda: [((f"b{n}",), n) for n in range(backends)]
    metrics.queue_pending.read = lambda: one(3)
    metrics.prompts_refused.labels(ODD).inc()
    metrics.event_delay.observe(0.003)
    metrics.traffic.to_clients = 10**12
    for n in range(models):
        metrics.job_times.started(f"m{n}.safetensors", f"prompt-{n}", 3.0)
        metrics.job_times.succeeded(f"m{n}.safetensors", f"prompt-{n}", 7.0, 4000.0)
    return metrics


def read(metrics: Metrics, content_type: str = PLAIN) -> dict[str, Metric]:
    """The text, read by the library's own parser."""
    text = b"".join(pieces(metrics.registry, content_type)).decode()
    return {family.name: family for family in (read_open if content_type == OPEN else read_plain)(text)}


def used(registry: CollectorRegistry) -> Iterator[Metric]:
    """The metrics that are shown."""
    for family in registry.collect():
        if family.samples and not all(sample.value == 0 for sample in family.samples if family.type == "histogram"):
            yield family


@pytest.mark.parametrize("content_type", [PLAIN, OPEN])
def test_the_text_says_the_same_as_the_librarys(content_type: str) -> None:
    metrics = busy(by_model=True)
    ours = read(metrics, content_type)
    generate = generate_open if content_type == OPEN else generate_latest
    theirs_text = generate(metrics.registry).decode()
    theirs = {family.name: family for family in (read_open if content_type == OPEN else read_plain)(theirs_text)}
    for family in used(metrics.registry):
        if family.name.startswith("process_"):
            continue
        mine, other = ours[family.name], theirs[family.name]
        assert (mine.type, mine.documentation, mine.samples) == (other.type, other.documentation, other.samples)
    assert [sample.labels for sample in ours["comfyui_gateway_prompts_refused"].samples] == [{"error": ODD}]


def test_a_scraper_gets_the_format_that_it_asks_for() -> None:
    assert content_type_for(PROMETHEUS) == OPEN
    assert content_type_for("") == content_type_for("*/*") == content_type_for("text/plain") == PLAIN


def test_series_appear_when_they_are_used() -> None:
    shown = read(Metrics(by_model=True)) | read(Metrics())
    samples = [sample for family in shown.values() for sample in family.samples]
    assert not [sample.name for sample in samples if "_bucket" in sample.name]
    assert not [sample.name for sample in samples if sample.name.endswith("_created")]
    assert {"comfyui_gateway_jobs_waiting", "comfyui_gateway_build_info"} <= shown.keys()
    histograms = [family for family in read(busy(by_model=True)).values() if family.type == "histogram"]
    assert len(histograms) == 5
    for family in histograms:
        counts = [sample.value for sample in family.samples if sample.name.endswith("_count")]
        assert counts, family.name
        assert all(counts), family.name


def test_an_open_gateway_tells_no_model_and_no_prompt() -> None:
    for content_type in (PLAIN, OPEN):
        text = b"".join(pieces(busy().registry, content_type)).decode()
        assert "comfyui_gateway_job_wait_seconds_count 2.0" in text
        assert "model=" not in text
        assert "safetensors" not in text
        assert "prompt-" not in text


def test_a_gateway_with_keys_tells_models_and_an_example_of_each_bucket() -> None:
    metrics = busy(by_model=True)
    family = read(metrics, OPEN)["comfyui_gateway_job_run_seconds"]
    examples = {sample.labels["model"]: sample.exemplar for sample in family.samples if sample.exemplar}
    assert {model: example.labels for model, example in examples.items()} == {
        "m0.safetensors": {"prompt_id": "prompt-0"},
        "m1.safetensors": {"prompt_id": "prompt-1"},
    }
    assert "prompt-" not in b"".join(pieces(metrics.registry, PLAIN)).decode()
    metrics.job_times.started("", "a-very-long-id" * 20, 1.0)
    assert "very-long" not in b"".join(pieces(metrics.registry, OPEN)).decode()


def test_a_model_that_lost_its_slot_leaves_no_series() -> None:
    metrics = busy(by_model=True, models=0)
    now = [0.0]
    metrics.job_times._clock = lambda: now[0]
    for n in range(25):
        metrics.job_times.started(f"m{n}", "p", 1.0)
    now[0] = 90_000.0
    metrics.job_times.started("new", "p", 1.0)
    samples = read(metrics)["comfyui_gateway_job_wait_seconds"].samples
    models = {sample.labels["model"] for sample in samples}
    assert "new" in models
    assert len(models) == 21, "20 names, and other"
    assert {sample.value for sample in samples if sample.labels["model"] == "other" and "count" in sample.name} == {5.0}


def test_a_model_of_an_earlier_run_may_lose_its_slot() -> None:
    times = Metrics(by_model=True).job_times
    times.restore([[f"m{n}", n] for n in range(20)])
    times.started("new", "p", 1.0)
    assert "new" in times.slots.used


def test_a_record_of_slots_is_read_with_care() -> None:
    times, again = busy(by_model=True).job_times, Metrics(by_model=True).job_times
    again.restore(times.record())
    assert set(again.slots.used) == {"m0.safetensors", "m1.safetensors"}
    for damaged in (None, {}, [[]], [["a", "b"]], [[1, 2]], [["a", True]], ["ab"]):
        again.restore(damaged)
        assert again.slots.used == {}


def test_much_text_comes_in_pieces() -> None:
    metrics = busy(by_model=True, backends=64, models=100)
    assert len(list(pieces(metrics.registry, OPEN))) > 3
    assert len(read(metrics, OPEN)["comfyui_gateway_probe_seconds"].samples) == 64 * 11


@pytest.mark.parametrize(
    ("value", "text"), [(1, "1.0"), (0.5, "0.5"), (math.inf, "+Inf"), (-math.inf, "-Inf"), (math.nan, "NaN")]
)
def test_numbers(value: float, text: str) -> None:
    assert number(value) == text
