"""Webhook of one prompt: `extra_data.webhook`, a URL that gets the events of that job; and what events tell. Pure.

`read` in `submission` takes it out of the prompt, so that no backend, answer, history entry, picture or log has it: its
URL and its secret are for the receiver alone. The journal has it in a column of its own. Here its form is checked,
because a process apart may read the prompt; `webhooks/prompt_checks.py` checks its URL, events and secret.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gateway.comfy import json_codec
from gateway.jobs.state.prompt_bounds import Rejection, name_of, rejection

# The key in extra_data.
NAME = "webhook"
# The key of what events repeat, and its maximum bytes in JSON. It stays in extra_data, too.
METADATA, MAX_METADATA = "metadata", 4096
# Characters of a URL and of a secret, and events that may be named. The settings are not imported here, because a
# process that parses prompts would load them.
MAX_URL, MAX_SECRET, MAX_EVENTS = 2048, 128, 20
_FIELDS = ("url", "events", "secret")
_EXAMPLE = 'give {"url": "https://example.com/hooks"}, with "events" and "secret" if wanted, or leave it out'


@dataclass(frozen=True, slots=True, repr=False)
class PromptWebhook:
    """URL of a prompt's webhook, the events that go there, and the secret that signs them.

    No `events` stand for the default ones, no `secret` for unsigned deliveries.
    """

    url: str
    events: tuple[str, ...] = ()
    secret: str | None = None

    def __repr__(self) -> str:
        return f"PromptWebhook(events={self.events})"

    @property
    def size(self) -> int:
        """Return the characters that its client controls."""
        return len(self.url) + len(self.secret or "")


def webhook_of(extra_data: Mapping[str, Any]) -> PromptWebhook | None:
    """Return the webhook in a prompt's extra_data, if any.

    Raises:
        Rejection: it is malformed. The refusal repeats no value of it.
    """
    given = extra_data.get(NAME)
    if given is None:
        return None
    if not isinstance(given, dict):
        raise refused_webhook(f"must be an object; got {name_of(given)}", _EXAMPLE)
    if not given.keys() <= set(_FIELDS):
        raise refused_webhook("has a field that there is not", f"there are {', '.join(_FIELDS)}")
    url, events, secret = (given.get(field) for field in _FIELDS)
    if not isinstance(url, str):
        raise refused_webhook(f"must be a text; got {name_of(url)}", _EXAMPLE, "url")
    if len(url) > MAX_URL:
        raise refused_webhook(f"has {len(url)} characters", f"at most {MAX_URL} are taken", "url")
    if events is not None and not (isinstance(events, list) and 0 < len(events) <= MAX_EVENTS):
        raise refused_webhook(
            "must be a list with one event or more", "leave it out to hear of the job's end", "events"
        )
    if not all(isinstance(event, str) for event in events or ()):
        raise refused_webhook("must be a list of texts", "leave it out to hear of the job's end", "events")
    if secret is not None and not (isinstance(secret, str) and len(secret) <= MAX_SECRET):
        advice = "give whsec_ and 24 to 64 random bytes in base64, or leave it out to get unsigned events"
        raise refused_webhook(f"must be a text of at most {MAX_SECRET} characters", advice, "secret")
    return PromptWebhook(url, tuple(events or ()), secret)


def refused_webhook(fault: str, advice: str, where: str = "") -> Rejection:
    """Return the refusal of a prompt for its webhook, in ComfyUI's form. `where` is the field at fault."""
    place = f"extra_data.{NAME}.{where}" if where else f"extra_data.{NAME}"
    return rejection("invalid_webhook", f"{place}: {fault}", advice, {"input_name": place})


def metadata_of(extra_data: Mapping[str, Any]) -> bytes:
    """Return a prompt's `extra_data.metadata` as events have it, in JSON; empty if it is too long, or if there is none.

    It is taken out when the prompt is read, because extra_data may be large when an event is made.
    """
    value = extra_data.get(METADATA)
    if value is None:
        return b""
    encoded = json_codec.dumps(value)
    return json_codec.packed(encoded) if len(encoded) <= MAX_METADATA else b""


def encode_webhook(webhook: PromptWebhook | None) -> bytes:
    """Return a prompt's webhook as the journal keeps it; empty without one."""
    if webhook is None:
        return b""
    return json_codec.dumps({"url": webhook.url, "events": webhook.events, "secret": webhook.secret})


def decode_webhook(data: bytes) -> PromptWebhook | None:
    """Return a webhook from the journal."""
    if not data:
        return None
    value = json_codec.loads(data)
    return PromptWebhook(value["url"], tuple(value["events"]), value["secret"])
