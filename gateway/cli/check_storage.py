"""Trial of the object storage that a configuration names: ``check --storage``."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import aiohttp
import click

from gateway.artifacts.object_store import ObjectStore, StorageError
from gateway.artifacts.probe import examine
from gateway.cli.terminal import EXIT_UNUSABLE, EXIT_USAGE, complain
from gateway.settings.storage import StorageSettings


def check_storage(settings: StorageSettings) -> int:
    """Try the storage, print a line for each step, and return the exit code."""
    if not settings.is_on:
        complain("storage.url is not set, so nothing is copied to object storage")
        return EXIT_USAGE
    try:
        store = ObjectStore.of(settings)
    except StorageError as error:
        complain(error.message)
        return EXIT_UNUSABLE
    click.echo(f"storage {store.place}")
    return asyncio.run(_examine(settings, store))


def storage_problem(settings: StorageSettings) -> str:
    """Return the sentence with which ``serve`` refuses the storage's settings, or an empty text. It makes no folder."""
    if not settings.is_on:
        return ""
    if settings.scheme == "file" and not Path(url2pathname(urlsplit(settings.url).path)).exists():
        settings = settings.model_copy(update={"url": "memory:"})
    try:
        ObjectStore.of(settings)
    except StorageError as error:
        return error.message
    return ""


async def _examine(settings: StorageSettings, store: ObjectStore) -> int:
    code = 0
    timeout = aiohttp.ClientTimeout(total=settings.timeout)
    context = ssl.create_default_context()
    if settings.ca_file is not None:
        context.load_verify_locations(settings.ca_file)
    connector = aiohttp.TCPConnector(ssl=context)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, trust_env=True) as http:
        async for step in examine(store, http if settings.links == "signed" else None):
            click.echo(f"  {step.name}: {step.error or step.note or 'ok'}")
            code = EXIT_UNUSABLE if step.error is not None else code
    return code
