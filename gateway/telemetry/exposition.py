"""Text of the metrics for Prometheus, made in slices, because a fleet of 64 backends has thousands of series.

The metrics library's own encoders take three times as long, and encode a metric in one piece.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric
from prometheus_client.samples import Exemplar, Sample

from gateway.telemetry.readings import number

PLAIN: Final = "text/plain; version=0.0.4; charset=utf-8"
OPEN: Final = "application/openmetrics-text; version=1.0.0; charset=utf-8"
# Seconds after which others have their turn, and the samples after which the time is looked at.
SLICE_SECONDS = 0.002
SLICE_SAMPLES = 128

# The library's names of types, as the older format has them.
_PLAIN_TYPES = {"info": "gauge", "unknown": "untyped"}
_ESCAPED = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})
_ESCAPED_HELP = str.maketrans({"\\": r"\\", "\n": r"\n"})


def content_type_for(accept: str) -> str:
    """Return the content type of the text for a request's Accept header: OpenMetrics only if the client asks for it."""
    return OPEN if "application/openmetrics-text" in accept else PLAIN


def pieces(registry: CollectorRegistry, content_type: str) -> Iterator[bytes]:
    """Yield the text of all metrics that have series, in pieces that take about `SLICE_SECONDS` each."""
    is_open = content_type == OPEN
    lines: list[str] = []
    until = time.perf_counter() + SLICE_SECONDS
    for family in registry.collect():
        samples = _used(family)
        if samples:
            lines.append(_head(family, is_open=is_open))
        for start in range(0, len(samples), SLICE_SAMPLES):
            if time.perf_counter() > until:
                yield _encoded(lines)
                lines, until = [], time.perf_counter() + SLICE_SECONDS
            lines += [_line(sample, is_open=is_open) for sample in samples[start : start + SLICE_SAMPLES]]
    if is_open:
        lines.append("# EOF\n")
    yield _encoded(lines)


def _encoded(lines: Iterable[str]) -> bytes:
    # A name may hold half of a surrogate pair, which no text has.
    return "".join(lines).encode("utf-8", "replace")


def _used(family: Metric) -> list[Sample]:
    """Return the samples of a metric without histograms that have counted nothing, because each has many series."""
    samples = family.samples
    if family.type != "histogram":
        return samples
    empty = [sample.labels for sample in samples if sample.value == 0 and sample.name.endswith("_count")]
    if not empty:
        return samples
    return [s for s in samples if {key: value for key, value in s.labels.items() if key != "le"} not in empty]


def _head(family: Metric, *, is_open: bool) -> str:
    name, kind = family.name, family.type
    if not is_open:
        # The older format names a counter and an info as their samples are named.
        suffix = {"counter": "_total", "info": "_info"}.get(kind, "")
        name, kind = name + suffix, _PLAIN_TYPES.get(kind, kind)
    text = family.documentation.translate(_ESCAPED if is_open else _ESCAPED_HELP)
    return f"# HELP {name} {text}\n# TYPE {name} {kind}\n"


def _line(sample: Sample, *, is_open: bool) -> str:
    exemplar = _exemplar(sample.exemplar) if is_open and sample.exemplar is not None else ""
    return f"{sample.name}{_braced(sample.labels)} {number(sample.value)}{exemplar}\n"


def _exemplar(exemplar: Exemplar) -> str:
    at = f" {exemplar.timestamp}" if exemplar.timestamp is not None else ""
    return f" # {_braced(exemplar.labels) or '{}'} {number(exemplar.value)}{at}"


def _braced(labels: dict[str, str]) -> str:
    if not labels:
        return ""
    return "{" + ",".join([f'{key}="{value.translate(_ESCAPED)}"' for key, value in sorted(labels.items())]) + "}"
