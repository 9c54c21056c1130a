"""Find backends that have lost their names: files are known by a backend's name, and a name may be given anew. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice

from gateway.store.known_backends import KnownBackends

MAX_NAMED = 10


def lost_names(backends: Mapping[str, str], known: KnownBackends) -> list[str]:
    """Return a sentence for each backend whose files answer 404 because of a name, at most `MAX_NAMED` and one more.

    An address may change, so another URL under a kept name is a fault only if it was that of another backend.

    Args:
        backends: the URLs of the configured backends by name.
        known: the backends that the journal knows.
    """
    found = [*_removed(backends, known), *_swapped(backends, known)]
    more = len(found) - MAX_NAMED
    return [*islice(found, MAX_NAMED), f"{more} more warnings of this kind"] if more > 0 else found


def _removed(backends: Mapping[str, str], known: KnownBackends) -> Iterator[str]:
    names = {url: name for name, url in backends.items()}
    for name, count in sorted(known.files.items()):
        if name in backends:
            continue
        heir = names.get(known.urls.get(name, ""))
        now = f"{heir}, which is where {name} was," if heir is not None else "the backend"
        yield (
            f"backends: {count} files are known on {name}, which is not configured: pictures of its jobs answer 404; "
            f"if it was not removed, give {now} its former name"
        )


def urls_to_note(backends: Mapping[str, str], known: KnownBackends) -> dict[str, str]:
    """Return the URLs to remember: a swapped backend keeps its former one, in case the operator takes the swap back.

    A backend that is not configured keeps its URL while it has files.
    """
    others = {name: url for name, url in known.urls.items() if name in known.files}
    swapped = _swapped_names(backends, known)
    return {**others, **{name: url for name, url in backends.items() if name not in swapped}}


def _swapped_names(backends: Mapping[str, str], known: KnownBackends) -> dict[str, str]:
    """Return each backend with files that is at another backend's former URL, with the other backend's name."""
    owners = {url: name for name, url in known.urls.items()}
    found = {name: owners.get(url, name) for name, url in backends.items() if name in known.files}
    return {name: owner for name, owner in found.items() if owner != name and known.urls.get(name) != backends[name]}


def _swapped(backends: Mapping[str, str], known: KnownBackends) -> Iterator[str]:
    for name, owner in _swapped_names(backends, known).items():
        before = known.urls.get(name)
        yield (
            f"backends: {name} is at {backends[name]}, where {owner} was, and {known.files[name]} files are known on "
            f"{name}{f', which was at {before}' if before else ''}: pictures of its jobs answer 404; give each backend "
            "its former name"
        )
