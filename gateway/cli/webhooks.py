"""The commands ``webhooks …``: endpoints of a running gateway, their deliveries, replay."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import quote, urlencode

import click

from gateway.cli.running_gateway import Target, ask, url_option
from gateway.cli.terminal import print_table
from gateway.settings.webhooks import BACKEND_EVENTS, JOB_EVENTS

_PATH = "/gateway/api/v1/me/webhooks"
_WHOSE = "a key"
_STATES = click.Choice(["pending", "delivered", "dead"])
_EVENT_PREFIX = "evt_"


@click.group()
def webhooks() -> None:
    """Make, list and change endpoints of webhooks; list deliveries, and send them again."""


def _with_gateway(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that name a running gateway and a tenant; the command gets a function that asks the gateway."""

    @functools.wraps(command)
    def called(*, target: Target, tenant: str | None, **rest: Any) -> Any:
        def asked(method: str, path: str = "", body: Any = None, **query: str | None) -> Any:
            named = {name: value for name, value in {**query, "tenant": tenant}.items() if value is not None}
            more = f"?{urlencode(named)}" if named else ""
            return ask(method, target, f"{_PATH}{path}{more}", body, whose=_WHOSE)

        return command(asked, **rest)

    with_tenant = click.option(
        "--tenant", default=None, help="Whose endpoints; an admin's key may name another tenant."
    )
    return with_tenant(url_option(required=True, whose=_WHOSE)(called))


def _part(text: str) -> str:
    return f"/{quote(text, safe='')}"


@webhooks.command("list")
@_with_gateway
def list_webhooks(asked: Callable[..., Any]) -> None:
    """List the endpoints: never a secret, and no query of a URL.

    Exit code: 0 listed, 1 the gateway refuses or can't be asked, 2 the arguments are wrong.
    """
    columns = ("id", "url", "events", "state", "reason", "source", "description")
    rows: list[Sequence[str]] = [columns]
    for each in asked("GET")["webhooks"]:
        rows.append([",".join(each[name]) if name == "events" else each[name] or "-" for name in columns])
    print_table(rows)


@webhooks.command()
@click.argument("receiver", metavar="RECEIVER")
@click.option(
    "--event", "events", multiple=True, type=click.Choice([*JOB_EVENTS, *BACKEND_EVENTS]), help="Can be repeated."
)
@click.option("--description", default="", help="A note for people.")
@_with_gateway
def create(asked: Callable[..., Any], receiver: str, events: tuple[str, ...], description: str) -> None:
    """Make an endpoint that delivers to the URL RECEIVER, and print its id and its secret, this once.

    If RECEIVER is -, the URL is read from standard input, because arguments show in the list of processes. Without
    --event it gets the events that end a job.

    Exit code: 0 it is made, 1 the gateway refuses or can't be asked, 2 the arguments are wrong.
    """
    url = sys.stdin.readline().strip() if receiver == "-" else receiver
    body = {"url": url, "description": description, **({"events": events} if events else {})}
    made = asked("POST", "", body)
    click.echo(f"{made['id']}\n{made['secret']}")


@webhooks.command()
@click.argument("endpoint", metavar="ENDPOINT")
@_with_gateway
def rotate(asked: Callable[..., Any], endpoint: str) -> None:
    """Give an endpoint a new secret, and print it; the old one signs beside it for a while.

    Exit code: 0 it has one, 1 the gateway refuses or can't be asked, 2 the arguments are wrong.
    """
    click.echo(asked("POST", f"{_part(endpoint)}/rotate", {})["secret"])


@webhooks.command()
@click.argument("endpoint", metavar="ENDPOINT")
@_with_gateway
def test(asked: Callable[..., Any], endpoint: str) -> None:
    """Send a test event to an endpoint, and print the event's id.

    Exit code: 0 it will be sent, 1 the gateway refuses or can't be asked, 2 the arguments are wrong.
    """
    click.echo(asked("POST", f"{_part(endpoint)}/test", {})["event_id"])


@webhooks.command()
@click.argument("endpoint", metavar="ENDPOINT")
@_with_gateway
def delete(asked: Callable[..., Any], endpoint: str) -> None:
    """Delete an endpoint and its deliveries.

    Exit code: 0 it is deleted, 1 the gateway refuses or can't be asked, 2 the arguments are wrong.
    """
    asked("DELETE", _part(endpoint))
    click.echo(f"{endpoint} is deleted")


@webhooks.command()
@click.argument("endpoint", metavar="ENDPOINT")
@_with_gateway
def disable(asked: Callable[..., Any], endpoint: str) -> None:
    """Send nothing more to an endpoint. Its events are kept, so that they can be replayed.

    Exit code: 0 it is disabled, 1 the gateway refuses or can't be asked, 2 the arguments are wrong.
    """
    asked("PATCH", _part(endpoint), {"state": "disabled"})
    click.echo(f"{endpoint} is disabled")


@webhooks.command()
@click.argument("endpoint", metavar="ENDPOINT")
@_with_gateway
def enable(asked: Callable[..., Any], endpoint: str) -> None:
    """Send events to an endpoint again; those that came meanwhile are sent by replay.

    Exit code: 0 it is enabled, 1 the gateway refuses or can't be asked, 2 the arguments are wrong.
    """
    asked("PATCH", _part(endpoint), {"state": "enabled"})
    click.echo(f"{endpoint} is enabled")


@webhooks.command()
@click.argument("endpoint", metavar="[ENDPOINT]", required=False, default="")
@click.option("--state", type=_STATES, default=None, help="Those in this state alone.")
@_with_gateway
def deliveries(asked: Callable[..., Any], endpoint: str, state: str | None) -> None:
    """List deliveries, the newest event first: to one endpoint, or all, those of prompts' own webhooks included.

    Exit code: 0 listed, 1 the gateway refuses or can't be asked, 2 the arguments are wrong.
    """
    columns = ("event", "happened_at", "type", "prompt_id", "endpoint", "state", "attempts", "last", "next_at")
    rows: list[Sequence[str]] = [columns]
    after: str | None = None
    while True:
        page = asked("GET", f"{_part(endpoint) if endpoint else ''}/deliveries", state=state, after=after, limit="200")
        rows += [_row(each) for each in page["deliveries"]]
        after = page.get("next")
        if after is None:
            break
    print_table(rows)


def _row(delivery: dict[str, Any]) -> list[str]:
    attempts = delivery["attempts"]
    last = str(attempts[-1]["status"] or attempts[-1]["error"]) if attempts else "-"
    names = ("event_id", "happened_at", "type", "prompt_id", "webhook", "state")
    shown = [str(delivery[name] or "-") for name in names]
    return [*shown, str(len(attempts)), last, delivery["next_at"] or "-"]


@webhooks.command()
@click.argument("named", metavar="EVENT|ENDPOINT")
@click.option("--since", default=None, metavar="WHEN", help="Of an endpoint: events from this time on.")
@click.option("--until", default=None, metavar="WHEN", help="Of an endpoint: events up to this time.  [default: now]")
@_with_gateway
def replay(asked: Callable[..., Any], named: str, since: str | None, until: str | None) -> None:
    """Send an event again, or to an endpoint all its events since WHEN, such as 2026-11-27T22:00:00Z.

    Exit code: 0 they will be sent, 1 the gateway refuses or can't be asked, 2 the arguments are wrong.
    """
    if named.startswith(_EVENT_PREFIX):
        if since is not None or until is not None:
            raise click.UsageError("--since and --until are for an endpoint")
        answer = asked("POST", f"/events{_part(named)}/replay", {})
    elif since is None:
        raise click.UsageError("give --since with an endpoint, or the id of an event (evt_…)")
    else:
        until_too = {} if until is None else {"until": until}
        answer = asked("POST", f"{_part(named)}/replay", {"since": since, **until_too})
    click.echo(f"{answer['replayed']} will be sent again")
