"""Settings of webhooks: where to deliver, how long to try, and endpoints of the file.

The checks of a webhook's URL and secret are here, because the configuration, the API and a prompt all give them.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import Annotated, Any
from urllib.parse import SplitResult, urlsplit

from pydantic import AfterValidator, Field, field_validator, model_validator

from gateway.settings.base import Age, Count, Model, Name, Network, Period, Seconds

JOB_EVENTS = ("job.queued", "job.started", "job.succeeded", "job.failed", "job.cancelled")
BACKEND_EVENTS = ("backend.down", "backend.up", "backend.poisoned")
# The default of an endpoint, and of a prompt's webhook: an event for the end of each job.
TERMINAL_EVENTS = ("job.succeeded", "job.failed", "job.cancelled")
MAX_URL = 2048
MAX_DESCRIPTION = 200
SECRET_PREFIX = "whsec_"
# Bytes of a secret, as Standard Webhooks has it.
MIN_SECRET, MAX_SECRET = 24, 64
_SECRET_FORM = f"must be {SECRET_PREFIX} and the base64 of {MIN_SECRET} to {MAX_SECRET} random bytes"
_UNFIT = re.compile(r"[\x00-\x20\x7f\\]")


def split_url(url: str) -> SplitResult:
    """Return the parts of a webhook's URL. No error repeats the URL, because URLs hold tokens.

    Raises:
        ValueError: it is no URL that a webhook may have, whatever the settings permit.
    """
    if len(url) > MAX_URL:
        raise ValueError(f"has {len(url)} characters; at most {MAX_URL} are taken")
    if not url.isascii() or _UNFIT.search(url):
        raise ValueError("must be ASCII without blanks, control characters and backslashes; percent-encode them")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ValueError("is not a URL: its host or its port is malformed") from None
    if parts.scheme not in ("https", "http") or not host or port == 0:
        raise ValueError("must be a URL with a scheme and a host, such as https://example.com/hooks")
    if "@" in parts.netloc:
        raise ValueError("must not hold a user or a password; sign with a secret instead")
    if parts.fragment or url.endswith("#"):
        raise ValueError("must not hold a fragment (#…), because it is never sent")
    return parts


def secret_key(secret: str) -> bytes:
    """Return the key that a secret stands for. The prefix and the padding may be missing. No error repeats it.

    Raises:
        ValueError: it is no secret of Standard Webhooks: it is malformed, too short or too long.
    """
    text = secret.removeprefix(SECRET_PREFIX)
    try:
        key = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(_SECRET_FORM) from None
    if not MIN_SECRET <= len(key) <= MAX_SECRET:
        raise ValueError(f"{_SECRET_FORM}; this has {len(key)}")
    return key


def checked_secret(secret: str) -> str:
    """Return a secret if it is well formed, with its prefix. No error repeats it.

    Raises:
        ValueError: it is no secret in the form of Standard Webhooks.
    """
    if not secret.startswith(SECRET_PREFIX):
        raise ValueError(_SECRET_FORM)
    secret_key(secret)
    return secret


def _checked_url(url: str) -> str:
    split_url(url)
    return url


def _checked_event(event: str) -> str:
    if event not in JOB_EVENTS + BACKEND_EVENTS:
        raise ValueError(f"must be one of {', '.join(JOB_EVENTS + BACKEND_EVENTS)}")
    return event


class WebhookEndpointSettings(Model):
    """An endpoint of the file. `tenant` is the one whose jobs it hears of.

    An endpoint that takes `backend.…` events hears of the whole fleet.
    """

    name: Name
    tenant: Name
    url: Annotated[str, Field(repr=False), AfterValidator(_checked_url)]
    events: Annotated[tuple[Annotated[str, AfterValidator(_checked_event)], ...], Field(min_length=1)] = TERMINAL_EVENTS
    secret: Annotated[str, Field(repr=False), AfterValidator(checked_secret)]


class WebhookSettings(Model):
    """Deliveries of events to URLs that tenants choose.

    `ports` None permits any port. `allow_networks` are networks that are not public and may be delivered to; there any
    port is permitted. `keep` bounds how long an event is kept, so it bounds the retries, too.
    """

    enabled: bool = True
    public_url: str = ""
    allow_http: bool = False
    allow_networks: tuple[Network, ...] = ()
    ports: tuple[Annotated[int, Field(ge=1, le=65_535)], ...] | None = (443,)
    timeout: Seconds = 20.0
    connect_timeout: Seconds = 5.0
    max_endpoints: Count = 10
    max_in_flight: Count = 4
    max_in_flight_total: Count = 64
    max_per_host: Count = 2
    keep: Age = 3 * 86_400.0
    max_events: Count = 10_000
    rotation_overlap: Period = 86_400.0
    disable_after: Age = 3 * 86_400.0
    endpoints: tuple[WebhookEndpointSettings, ...] = ()

    @field_validator("ports", mode="before")
    @classmethod
    def _split_ports(cls, given: Any) -> Any:
        """Split a text, because a variable of the environment gives ``443,8443``; ``any`` permits any port."""
        if not isinstance(given, str):
            return given
        return None if given.strip().lower() == "any" else [part.strip() for part in given.split(",") if part.strip()]

    @field_validator("public_url")
    @classmethod
    def _check_public_url(cls, url: str) -> str:
        if not url:
            return url
        parts = split_url(url)
        if parts.query:
            raise ValueError("must be the address of this gateway for its clients, such as https://comfy.example.com")
        return url.rstrip("/")

    @model_validator(mode="after")
    def _check_endpoints(self) -> WebhookSettings:
        names = [endpoint.name for endpoint in self.endpoints]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"endpoints: each needs a name of its own; given twice: {', '.join(twice)}")
        return self
