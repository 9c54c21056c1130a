"""Preflight checks of a configuration, shared by ``check`` and ``serve``: refusals and warnings."""

from __future__ import annotations

import os
import shutil
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from pathlib import Path
from urllib.parse import urlsplit

from gateway.fleet.renames import lost_names
from gateway.jobs.state.records import fault_of_job
from gateway.settings import STREAMS, Settings, is_loopback
from gateway.settings.addresses import LOOPBACK, canonical_host, host_and_port
from gateway.settings.floors import slips
from gateway.store import directory
from gateway.store.protocol import StoreError
from gateway.store.version_check import look, look_at_backends
from gateway.tenants.keys import LOCAL_TENANT, Keyring
from gateway.tenants.policy import Policies
from gateway.web.server.bind_addresses import CannotListen, try_to_bind

MAX_NAMED_TENANTS = 10
MAX_WARNINGS = 20


@dataclass(frozen=True, slots=True)
class Machine:
    """The result of the checks of this machine and its data directory: a refusal (or an empty text), and warnings.

    If a gateway runs on the data directory, that gateway has the address, so the address was not tried.
    """

    refusal: str = ""
    is_running: bool = False
    warnings: list[str] = field(default_factory=list)


def judge_machine(settings: Settings) -> Machine:
    """Check that this machine can serve the configuration now. Nothing is made or changed."""
    found: list[str] = []
    urls = {backend.name: backend.url for backend in settings.backends}
    try:
        if directory.is_taken(settings.data_dir):
            known = look_at_backends(settings.data_dir)
            return Machine(is_running=True, warnings=lost_names(urls, known))
        looked = look(settings.data_dir, fault_of_job)
        found += [*looked.warnings, *lost_names(urls, looked.known)]
        try_to_bind(settings.server.host, settings.server.port)
        if settings.server.tls.redirect_port is not None:
            try_to_bind(settings.server.host, settings.server.tls.redirect_port)
        if (unwritable := _unwritable_log(settings.log.file)) is not None:
            return Machine(unwritable, warnings=found)
    except (StoreError, CannotListen) as error:
        return Machine(str(error), warnings=found)
    return Machine(warnings=found)


def _unwritable_log(file: str) -> str | None:
    """Return the reason for which the log file can't be written; None if it can."""
    if file in STREAMS:
        return None
    path = Path(file).absolute()
    place, needed = (path, os.W_OK) if path.exists() else (path.parent, os.W_OK | os.X_OK)
    return None if os.access(place, needed) else f"log.file: {place} can't be written"


def warnings(settings: Settings) -> list[str]:
    """Return a sentence for each finding that is dangerous or most likely a mistake, but allowed."""
    found = [
        *settings.former_names,
        *_open_doors(settings),
        *_same_comfyuis(settings),
        *_missing_programs(settings),
        *_exposed_backends(settings),
        *_volatile_storage(settings),
        *expired_keys(settings, time.time()),
        *slips(settings),
        *directory.space_warnings(settings.data_dir),
    ]
    if (lacking := without_backends(settings)) is not None:
        found.append(lacking)
    more = len(found) - MAX_WARNINGS
    return [*found[:MAX_WARNINGS], f"{more} more warnings of this kind"] if more > 0 else found


def hints(settings: Settings) -> list[str]:
    """Return a sentence for each tenant that no key of the configuration stands for.

    The store may have such a key, so ``check`` prints these sentences, and the log does not have them.
    """
    unknown = "no key of the configuration stands for this tenant; one of the store may"
    return [f"{place}: {unknown}" for place in unknown_tenants(settings)]


def _volatile_storage(settings: Settings) -> Iterator[str]:
    if settings.storage.scheme == "memory":
        yield "storage.url: memory: keeps files in the gateway's memory, so they are lost when it stops"


def _open_doors(settings: Settings) -> Iterator[str]:
    server, host = settings.server, settings.server.host
    for network in server.trusted_proxies:
        if ip_network(network).prefixlen == 0:
            yield (
                f"server.trusted_proxies: {network} believes anybody's X-Forwarded-For, so a caller can choose the "
                "address that he is limited and logged by; list the proxies alone, such as 10.0.0.0/8"
            )
    if is_loopback(host):
        return
    if settings.auth.disabled:
        yield f"auth.disabled: everybody who can reach {host} may run workflows and see all images; give keys"
        return
    for network in settings.tenants.anonymous.networks:
        if ip_network(network).prefixlen == 0:
            yield f"tenants.anonymous.networks: {network} lets everybody in without a key; list your own networks"
    if server.tls.certificate is None and not server.trusted_proxies:
        yield (
            f"server.tls: keys and images cross the network unencrypted to {host}; give a certificate, or list the "
            "proxy that has one in server.trusted_proxies"
        )


def _exposed_backends(settings: Settings) -> Iterator[str]:
    """Yield a sentence for each backend whose network is open to webhooks. No name is looked up."""
    networks = [ip_network(network) for network in settings.webhooks.allow_networks]
    for place, backend in enumerate(settings.backends):
        host = canonical_host(host_and_port(backend.url)[0])
        try:
            addresses = [ip_address(each) for each in (("127.0.0.1", "::1") if host == LOOPBACK else (host,))]
        except ValueError:
            continue
        if any(address in network for address in addresses for network in networks):
            yield (
                f"webhooks.allow_networks: it holds the address of backends[{place}] ({backend.name}); the gateway "
                "delivers to no backend, but to other servers of that network; list the receivers alone"
            )


def _missing_programs(settings: Settings) -> Iterator[str]:
    """Yield a sentence for each backend whose restart command can't be run here. It does not repeat the command."""
    for place, backend in enumerate(settings.backends):
        if backend.restart is not None and backend.restart.command and shutil.which(backend.restart.command[0]) is None:
            yield (
                f"backends[{place}].restart.command: its program is not there, or may not be run; give its path, or "
                "put it on the PATH of the gateway"
            )


def _same_comfyuis(settings: Settings) -> Iterator[str]:
    """Yield a sentence for each pair of backends that are most likely one ComfyUI under two names."""
    places: dict[tuple[int, str], list[int]] = defaultdict(list)
    for place, backend in enumerate(settings.backends):
        host, port = host_and_port(backend.url)
        if canonical_host(host) == LOOPBACK:
            places[port, urlsplit(backend.url).path].append(place)
    for first, *others in places.values():
        for other in others:
            yield (
                f"backends[{other}].url: {settings.backends[other].url} and {settings.backends[first].url} are most "
                "likely the same ComfyUI, which would hear events for one of the two alone; keep one"
            )


def expired_keys(settings: Settings, now: float) -> Iterator[str]:
    """Yield a sentence for each expired key. `now` is in seconds since 1970."""
    for place, key in enumerate(settings.auth.keys):
        if key.expires is not None and key.expires.timestamp() <= now:
            when = f"{key.expires:%Y-%m-%d %H:%M} {key.expires:%Z}"
            yield f"auth.keys[{place}].expires: {key.name} expired at {when}, so it lets nobody in; give a later date"


def unknown_tenants(settings: Settings) -> list[str]:
    """Return the settings that name a tenant without a key in the configuration: made over the API, or misspelt."""
    known = {key.tenant or key.name for key in settings.auth.keys} | {LOCAL_TENANT}
    if settings.tenants.anonymous.networks:
        known.add(settings.tenants.anonymous.tenant)
    places = [f"tenants.named.{tenant}" for tenant in sorted(settings.tenants.named.keys() - known)]
    for place, backend in enumerate(settings.backends):
        places += [f"backends[{place}].tenants: {tenant}" for tenant in backend.tenants if tenant not in known]
    return places


def without_backends(settings: Settings) -> str | None:
    """Return the warning that tenants without a name in the configuration have no backend; None if they have one."""
    policies = Policies(settings.tenants, settings.backends)
    if not (settings.backends and policies.default.lacks_backends):
        return None
    keyring = Keyring(settings.auth, settings.tenants.anonymous)
    known = keyring.user_tenants | keyring.admin_tenants
    lacking = sorted(tenant for tenant in known if policies.of(tenant).lacks_backends)
    more = f" and {len(lacking) - MAX_NAMED_TENANTS} more" if len(lacking) > MAX_NAMED_TENANTS else ""
    named = ", ".join(lacking[:MAX_NAMED_TENANTS]) or "none"
    return (
        "tenants.default: every backend that it may use is dedicated to named tenants; all others are refused "
        f"(by the configuration's keys: {named}{more}); share a backend, or add them to the tenants of one"
    )
