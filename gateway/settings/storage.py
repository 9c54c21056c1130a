"""Settings of object storage: where outputs are copied to, when, and how long they are kept there."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from gateway.settings.base import Age, Bytes, Count, Model, Period, Seconds
from gateway.settings.units import TIMES

# S3 refuses a signed URL with a longer lifetime.
MAX_LINK_SECONDS = 7 * 86_400
SCHEMES = ("s3", "gs", "az", "file", "memory")
Kind = Literal["output", "temp", "uploads"]


def _checked_endpoint(name: str, url: str, *, allow_http: bool) -> None:
    if not url:
        return
    parts = urlsplit(url)
    if parts.scheme not in ("https", "http") or not parts.hostname or parts.query or "@" in parts.netloc:
        raise ValueError(f"{name} must be the URL of the store's server, such as https://s3.example.com")
    if parts.scheme == "http" and not allow_http:
        raise ValueError(f"{name} is an http:// URL; set allow_http: true if the network between is yours")


class StorageRetention(Model):
    """Age and bytes of a tenant's stored files. The oldest files are deleted first. None: no maximum."""

    max_age: Age | None = None
    max_bytes: Bytes | None = None


class StorageSettings(Model):
    """Copies of outputs in object storage. An empty `url` turns them off.

    `url` is ``s3://bucket/prefix``, ``gs://bucket/prefix``, ``az://container/prefix``, ``file:///folder`` or
    ``memory:`` (for tests). `public_endpoint` stands in signed URLs if clients reach the store at another address.
    """

    url: str = ""
    endpoint: str = ""
    public_endpoint: str = ""
    region: str = ""
    access_key_id: Annotated[str, Field(repr=False)] = ""
    secret_access_key: Annotated[str, Field(repr=False)] = ""
    session_token: Annotated[str, Field(repr=False)] = ""
    service_account: Path | None = None
    account_name: str = ""
    account_key: Annotated[str, Field(repr=False)] = ""
    virtual_hosted_style: bool = False
    allow_http: bool = False
    ca_file: Path | None = None
    when: Literal["after", "before"] = "after"
    max_wait: Seconds = 10.0
    kinds: tuple[Kind, ...] = ("output",)
    links: Literal["none", "signed"] = "none"
    link_lifetime: Annotated[float, Field(gt=0, le=MAX_LINK_SECONDS), *TIMES] = 3600.0
    strip_metadata: bool = False
    delete_with_history: bool = False
    retention: StorageRetention = StorageRetention()
    max_concurrency: Count = 8
    max_spool: Bytes = 10 * 2**30
    timeout: Seconds = 60.0
    sweep_every: Period = 86_400.0
    forgotten_after: Period = 7 * 86_400.0
    unused_after: Period = 3600.0

    @property
    def is_on(self) -> bool:
        """Return True if outputs are copied to object storage."""
        return bool(self.url)

    @property
    def scheme(self) -> str:
        """Return the scheme of the URL: the kind of store."""
        return self.url.partition(":")[0]

    @field_validator("url")
    @classmethod
    def _check_url(cls, url: str) -> str:
        if not url:
            return url
        parts = urlsplit(url)
        if parts.scheme not in SCHEMES or parts.query or parts.fragment or "@" in parts.netloc:
            raise ValueError(
                "must be s3://bucket, gs://bucket, az://container or file:///folder, with or without a path"
            )
        if parts.scheme in ("s3", "gs", "az") and not parts.netloc:
            raise ValueError(f"names no bucket; write {parts.scheme}://bucket")
        if parts.scheme == "file" and (parts.netloc or not parts.path.startswith("/")):
            raise ValueError("must name an absolute path, such as file:///var/lib/comfyui-gateway/outputs")
        return url.rstrip("/") if parts.scheme != "memory" else url

    @model_validator(mode="after")
    def _check(self) -> StorageSettings:
        for name in ("endpoint", "public_endpoint"):
            _checked_endpoint(name, getattr(self, name), allow_http=self.allow_http)
            if getattr(self, name) and self.scheme in ("file", "memory"):
                raise ValueError(f"{name} is for s3://, gs:// and az:// alone")
        if self.scheme == "s3" and not (self.access_key_id and self.secret_access_key):
            raise ValueError("access_key_id and secret_access_key are needed for s3://")
        if self.scheme == "gs" and self.service_account is None:
            raise ValueError("service_account, the path of a key file in JSON, is needed for gs://")
        if self.scheme == "az" and not (self.account_name and self.account_key):
            raise ValueError("account_name and account_key are needed for az://")
        if len(set(self.kinds)) < len(self.kinds) or not self.kinds:
            raise ValueError("kinds must list output, temp or uploads, each once")
        return self
