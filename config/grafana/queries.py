"""Queries in PromQL: selectors of the gateway's metrics by a dashboard's variables, rates, counts and quantiles."""

from __future__ import annotations

from dataclasses import dataclass

PREFIX = "comfyui_gateway_"
JOB = "comfyui-gateway"

INSTANCE = 'instance=~"$instance"'
BACKEND = 'backend=~"$backend"'
MODEL = 'model=~"$model"'


@dataclass(frozen=True)
class Query:
    """A query in PromQL.

    Attributes:
        legend: name of each series, with ``{{label}}``.
        instant: True for one value now, for tables. Else the query runs over the dashboard's time range.
        exemplars: True if the graph shows exemplars, if Prometheus keeps them.
    """

    expr: str
    legend: str = ""
    instant: bool = False
    exemplars: bool = False


def of(name: str, *matchers: str) -> str:
    """Return the selector of a metric on the chosen gateways. A recorded name is given in full."""
    full = name if ":" in name or name.startswith("process_") else PREFIX + name
    return f"{full}{{{', '.join((INSTANCE, *matchers))}}}"


def at(name: str, *matchers: str) -> str:
    """Return the selector of a metric of the chosen backends."""
    return of(name, BACKEND, *matchers)


def by_model(name: str) -> str:
    """Return the selector of a metric of the chosen models."""
    return of(name, MODEL)


def process(name: str) -> str:
    """Return the selector of a metric of the gateway's process."""
    return of(name, f'job="{JOB}"')


def rate(selector: str) -> str:
    """Return the rate of a counter, a second."""
    return f"rate({selector}[$__rate_interval])"


def counted(selector: str) -> str:
    """Return the events of a rare counter in the last interval, with the first one.

    A series appears with its first event, and increase() does not count that one.
    """
    return f"(({selector} unless {selector} offset $__rate_interval) or increase({selector}[$__rate_interval]))"


def quantile(share: float, selector: str, *labels: str) -> str:
    """Return a quantile of a histogram, for each value of the labels."""
    return f"histogram_quantile({share}, sum by ({', '.join(('le', *labels))}) ({rate(selector)}))"


def or_zero(expr: str) -> str:
    """Return 0 where the expression has no series, because nothing has happened yet; nothing if no gateway answers."""
    return f"{expr} or 0 * sum({of('build_info')})"
