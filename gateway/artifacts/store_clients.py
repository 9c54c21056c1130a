"""Clients of object stores, by the scheme of the URL. All credentials are explicit.

Without explicit credentials the library would ask the cloud's metadata address, and take variables of the environment.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import url2pathname

from obstore.store import AzureStore, GCSStore, LocalStore, MemoryStore, S3Store

from gateway.settings.storage import StorageSettings

if TYPE_CHECKING:
    from obstore.store import AzureConfig, ClientConfig, GCSConfig, RetryConfig, S3Config

SigningStore = AzureStore | GCSStore | S3Store
AnyStore = SigningStore | LocalStore | MemoryStore
_CONNECT_SECONDS = 5.0
_VARIABLES = ("AWS_", "AZURE_", "GOOGLE_")
# Whole responses, because a slow viewer may take hours for a large file; each read has a limit of its own.
_RESPONSE = timedelta(days=1)


def bucket_of(settings: StorageSettings) -> str:
    """Return the bucket or container that the URL names; empty for a folder and for memory."""
    return urlsplit(settings.url).netloc


def folder_of(settings: StorageSettings) -> Path:
    """Return the folder of a ``file:`` URL."""
    return Path(url2pathname(urlsplit(settings.url).path))


def make_store(settings: StorageSettings) -> AnyStore:
    """Return a client of the store.

    Raises:
        OSError: the folder can't be made, or a file of the settings can't be read.
        ValueError: the settings make no store.
    """
    if settings.scheme == "memory":
        return MemoryStore()
    if settings.scheme == "file":
        folder = folder_of(settings)
        folder.mkdir(parents=True, exist_ok=True)
        # Delete the folders of a job with its last object.
        return LocalStore(folder, automatic_cleanup=True)
    return make_remote_store(settings, settings.endpoint)


def make_remote_store(settings: StorageSettings, endpoint: str) -> SigningStore:
    """Return a client of a cloud's store. `endpoint` is the server's URL; empty for the provider's own.

    Raises:
        OSError: a file of the settings can't be read.
        ValueError: the settings make no store.
    """
    prefix = urlsplit(settings.url).path.strip("/") or None
    makers: dict[str, Callable[[StorageSettings, str, str | None], SigningStore]] = {"s3": _s3, "gs": _gs, "az": _az}
    with _without_variables():
        return makers[settings.scheme](settings, endpoint, prefix)


@contextlib.contextmanager
def _without_variables() -> Iterator[None]:
    """Hide the variables of the environment that the library would mix with the settings."""
    hidden = {name: value for name, value in os.environ.items() if name.upper().startswith(_VARIABLES)}
    for name in hidden:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(hidden)


def _client(settings: StorageSettings) -> ClientConfig:
    limit = timedelta(seconds=settings.timeout)
    options: ClientConfig = {
        "allow_http": settings.allow_http,
        "connect_timeout": min(limit, timedelta(seconds=_CONNECT_SECONDS)),
        "read_timeout": limit,
        "timeout": _RESPONSE,
    }
    if settings.ca_file is not None:
        options["root_certificate"] = settings.ca_file.read_bytes()
    return options


def _retries(settings: StorageSettings) -> RetryConfig:
    return {
        "max_retries": 2,
        "retry_timeout": timedelta(seconds=settings.timeout),
        "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=1), "base": 2},
    }


def s3_endpoint(settings: StorageSettings, endpoint: str) -> str:
    """Return the URL of an S3 server, with the bucket in its host if requests are of the virtual hosted style."""
    bucket, region = bucket_of(settings), settings.region or "us-east-1"
    endpoint = endpoint.rstrip("/") or f"https://s3.{region}.amazonaws.com"
    parts = urlsplit(endpoint)
    if not settings.virtual_hosted_style or parts.netloc.startswith(f"{bucket}."):
        return endpoint
    return parts._replace(netloc=f"{bucket}.{parts.netloc}").geturl()


def _s3(settings: StorageSettings, endpoint: str, prefix: str | None) -> S3Store:
    config: S3Config = {
        "access_key_id": settings.access_key_id,
        "secret_access_key": settings.secret_access_key,
        "endpoint": s3_endpoint(settings, endpoint),
        "region": settings.region or "us-east-1",
        "virtual_hosted_style_request": settings.virtual_hosted_style,
    }
    if settings.session_token:
        config["session_token"] = settings.session_token
    return S3Store(
        bucket_of(settings),
        prefix=prefix,
        config=config,
        client_options=_client(settings),
        retry_config=_retries(settings),
    )


def _gs(settings: StorageSettings, endpoint: str, prefix: str | None) -> GCSStore:
    assert settings.service_account is not None
    config: GCSConfig = {"service_account_key": settings.service_account.read_text()}
    if endpoint:
        config["base_url"] = endpoint.rstrip("/")
    return GCSStore(
        bucket_of(settings),
        prefix=prefix,
        config=config,
        client_options=_client(settings),
        retry_config=_retries(settings),
    )


def _az(settings: StorageSettings, endpoint: str, prefix: str | None) -> AzureStore:
    config: AzureConfig = {
        "account_name": settings.account_name,
        "account_key": settings.account_key,
        "credential_type": "access_key",
    }
    if endpoint:
        config["endpoint"] = endpoint.rstrip("/")
    return AzureStore(
        bucket_of(settings),
        prefix=prefix,
        config=config,
        client_options=_client(settings),
        retry_config=_retries(settings),
    )
