"""Index of files: the backend that has each file, and the name that its tenant sees.

Two backends both write ComfyUI_00001_.png. The first one that a tenant sees keeps its name; one that collides gets
``~<backend>`` before its suffix, for that tenant, everywhere. Uploads live in the same names: those of one tenant.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import count, islice
from os.path import splitext

from gateway.comfy.file_refs import FileRef
from gateway.comfy.saved_names import Saved, saved
from gateway.files.identity import CACHED, GONE, UNTOLD
from gateway.files.placements import spelled_alike


@dataclass(frozen=True, slots=True)
class Holder:
    """Place of a file: the backend, and the file's name there.

    `etag` identifies the file there (see identity.py); it is None while the job that writes the file runs. `before` is
    the value of `etag` until that job began.
    """

    backend: str
    there: FileRef
    etag: str | None = UNTOLD
    before: str = UNTOLD

    @property
    def is_known(self) -> bool:
        """Return True if the file was checked after the end of its job."""
        return self.etag not in (None, CACHED)


@dataclass(frozen=True, slots=True)
class Upload:
    """A file that a client brought: its bytes are in the gateway's own store, under their SHA-256."""

    digest: str
    size: int


_NONE: Mapping[FileRef, Upload] = {}
_MISSING = object()
# Files of one tenant that are forgotten at a time, before the index looks again for the tenant with most.
TRIM_BATCH = 100


class Origin(StrEnum):
    """Origin of a reported file: its job WROTE it, an EARLIER job did (ComfyUI's cache), or the job only NAMED it."""

    WROTE = "wrote"
    EARLIER = "earlier"
    NAMED = "named"


class FileIndex:
    """The files that each tenant may see. Pure bookkeeping: methods return changes to persist, and write nothing."""

    def __init__(self) -> None:
        self._files: dict[tuple[str, FileRef], Holder | Upload] = {}
        self._names: dict[tuple[str, str, FileRef], FileRef] = {}
        self._tenants: dict[tuple[str, FileRef], tuple[str, ...]] = {}
        self._first: dict[FileRef, Holder | Upload] = {}
        self._uploads: dict[str, dict[FileRef, Upload]] = {}
        self._versions: dict[str, int] = {}
        # Tenants with uploads under a name, or below a folder (no filename), in the spelling of `spelled_alike`.
        self._owners: dict[FileRef, Counter[str]] = {}
        # Files of a backend whose name another tenant's file had before.
        self._anew: set[tuple[str, FileRef]] = set()
        # The highest number of the outputs with one folder and prefix, and how many of these there are.
        self._counts: dict[tuple[str, FileRef, str], tuple[int, int]] = {}
        # The number that a tenant sees in the names of files that have one number in one folder of a backend.
        self._numbers: dict[tuple[str, str, FileRef, str, int], tuple[int, int]] = {}
        # The files that each tenant's jobs made, in the order in which they were last written.
        self._made: dict[str, dict[FileRef, None]] = {}
        self._made_count = 0

    def __len__(self) -> int:
        return len(self._files)

    def claim(
        self,
        tenant: str,
        backend: str,
        ref: FileRef,
        origin: Origin = Origin.WROTE,
        etag: str | None = None,
        visible: FileRef | None = None,
    ) -> tuple[FileRef, bool]:
        """Return the tenant's name for a file that `backend` calls `ref`, and True if the tenant newly has the name.

        A file without a name gets `visible` if that name is free. If `visible` is None, it gets the backend's name.

        A file that its job only names does not become the tenant's if it is another tenant's. Neither does a file from
        ComfyUI's cache whose name was given anew, because the cache may mean another tenant's earlier file. `etag` is
        the first identity of a file that is nobody's.
        """
        key = (backend, ref)
        known = self._names.get((tenant, *key))
        if known is not None:
            if origin is Origin.WROTE:
                self._know(tenant, known, None)
            return known, False
        others = set(self.others(tenant, backend, ref).values())
        visible = self._free_name(tenant, backend, visible or ref)
        if (others - {GONE} and origin is Origin.NAMED) or (others and origin is Origin.EARLIER and key in self._anew):
            return visible, False
        if others and (origin is Origin.EARLIER or etag == CACHED):
            # The file is theirs, whatever lies there by now. If they disagree on its ETag, one of them only named it.
            etag = others.pop() if len(others) == 1 else GONE
        self._put(tenant, visible, Holder(backend, ref, etag))
        return visible, True

    def others(self, tenant: str, backend: str, ref: FileRef) -> Mapping[str, str | None]:
        """Return by tenant the ETags by which other tenants know a file of a backend."""
        owners = self._tenants.get((backend, ref), ())
        return {owner: self._held(owner, backend, ref).etag for owner in owners if owner != tenant}

    def _free_name(self, tenant: str, backend: str, ref: FileRef) -> FileRef:
        name, attempt = ref, 0
        while (tenant, name) in self._files:
            attempt += 1
            name = replace(ref, filename=marked(ref.filename, backend if attempt == 1 else f"{backend}-{attempt}"))
        return name

    def number_for(self, tenant: str, backend: str, there: FileRef, folder: FileRef, parts: Saved) -> int:
        """Return the number that a tenant is to see in a file's name: one more than the highest so far.

        Files that have one number in one folder of a backend, like a film and its first picture, have one number here.

        Args:
            there: the file on its backend.
            folder: the folder that the tenant sees, as a file without a name.
            parts: the parts of its name as the tenant sees it, with the backend's number.
        """
        known = self._numbers.get((tenant, backend, *_numbered(there, parts)))
        return known[0] if known is not None else self.next_number(tenant, folder, parts)

    def next_number(self, tenant: str, folder: FileRef, parts: Saved) -> int:
        """Return one more than the highest number of a tenant's files with a folder and prefix.

        The first file keeps its number, because ComfyUI counts on over the pictures of a batch even if each has a
        prefix of its own (``%batch_num%``). An upload may have the name that this makes.
        """
        known = self._counts.get((tenant, folder, parts.prefix))
        number = known[0] + 1 if known is not None else parts.number
        while (tenant, replace(folder, filename=replace(parts, number=number).filename)) in self._files:
            number += 1
        return number

    def _count(self, tenant: str, visible: FileRef, holder: Holder, step: int) -> None:
        """Take a file into the counts, or out of them. A count goes with the last file that it counts."""
        parts = saved(visible.filename) if visible.kind == "output" else None
        if parts is None:
            return
        key = (tenant, FileRef(visible.kind, visible.subfolder, ""), parts.prefix)
        highest, count = self._counts.get(key, (0, 0))
        self._counts[key] = (max(highest, parts.number) if step > 0 else highest, count + step)
        if count + step <= 0:
            del self._counts[key]
        there = saved(holder.there.filename) if holder.there.subfolder != visible.subfolder else None
        if there is None:
            return
        own = (tenant, holder.backend, *_numbered(holder.there, there))
        number, count = self._numbers.get(own, (parts.number, 0))
        self._numbers[own] = (parts.number if step > 0 else number, count + step)
        if count + step <= 0:
            del self._numbers[own]

    def forget(self, tenant: str, backend: str, there: FileRef) -> FileRef | None:
        """Forget a tenant's file that its backend lost. Return the name that means nothing now; None if it had none."""
        visible = self._names.get((tenant, backend, there))
        if visible is None:
            return None
        holder = self._files.pop((tenant, visible))
        assert isinstance(holder, Holder)
        self._forget(tenant, holder)
        if self._first.get(visible) is holder:
            del self._first[visible]
        return visible

    def _held(self, tenant: str, backend: str, ref: FileRef) -> Holder:
        held = self._files[tenant, self._names[tenant, backend, ref]]
        assert isinstance(held, Holder)
        return held

    def _know(self, tenant: str, visible: FileRef, etag: str | None) -> None:
        held = self._files[tenant, visible]
        assert isinstance(held, Holder)
        before = held.etag if held.is_known and held.etag != GONE else held.before
        now = replace(held, etag=etag, before=UNTOLD if etag is not None else before or UNTOLD)
        self._files[tenant, visible] = now
        if self._first.get(visible) is held:
            self._first[visible] = now
        made = self._made[tenant]
        made[visible] = made.pop(visible)

    def held(self, tenant: str, backend: str, ref: FileRef) -> Holder | None:
        """Return a file of a backend, as the tenant has it; None if it is not the tenant's."""
        return self._held(tenant, backend, ref) if (tenant, backend, ref) in self._names else None

    def know(self, tenant: str, backend: str, ref: FileRef, etag: str) -> bool:
        """Set the ETag by which the tenant knows a file. Return False if it is not the tenant's."""
        visible = self._names.get((tenant, backend, ref))
        if visible is not None:
            self._know(tenant, visible, etag)
        return visible is not None

    def restore(self, tenant: str, visible: FileRef, holder: Holder, is_anew: bool = False) -> None:
        """Put back a file that an earlier run remembered."""
        self._put(tenant, visible, holder)
        if is_anew:
            self._anew.add((holder.backend, holder.there))

    def is_anew(self, backend: str, ref: FileRef) -> bool:
        """Return True if another tenant's file had this name on the backend before."""
        return (backend, ref) in self._anew

    def _put(self, tenant: str, visible: FileRef, holder: Holder) -> None:
        self._files[tenant, visible] = holder
        self._first.setdefault(visible, holder)
        self._names[tenant, holder.backend, holder.there] = visible
        self._count(tenant, visible, holder, 1)
        at = (holder.backend, holder.there)
        self._tenants[at] = (*self._tenants.get(at, ()), tenant)
        made = self._made.setdefault(tenant, {})
        self._made_count += visible not in made
        made[visible] = None

    def trim(self, maximum: int, may: Callable[[str], bool]) -> list[tuple[str, FileRef]]:
        """Forget the oldest files of the tenant with most, until jobs have made `maximum`, if `may` permits the tenant.

        Returns each (tenant, name) that means nothing now.
        """
        gone: list[tuple[str, FileRef]] = []
        while (excess := self._made_count - maximum) > 0:
            tenant = max(filter(may, self._made), key=lambda each: len(self._made[each]), default=None)
            if tenant is None:
                break
            for visible in list(islice(self._made[tenant], min(excess, TRIM_BATCH))):
                held = self._files.pop((tenant, visible))
                assert isinstance(held, Holder)
                self._forget(tenant, held)
                if (held.backend, held.there) not in self._tenants:
                    self._anew.discard((held.backend, held.there))
                if self._first.get(visible) is held:
                    del self._first[visible]
                gone.append((tenant, visible))
        return gone

    def _forget(self, tenant: str, holder: Holder) -> FileRef | None:
        """Take a file from a tenant. Return the tenant's name for it; None if it had none."""
        backend, there = holder.backend, holder.there
        visible = self._names.pop((tenant, backend, there), None)
        if visible is not None:
            self._count(tenant, visible, holder, -1)
        if visible is not None and self._made[tenant].pop(visible, _MISSING) is None:
            self._made_count -= 1
            if not self._made[tenant]:
                del self._made[tenant]
        left = tuple(other for other in self._tenants.get((backend, there), ()) if other != tenant)
        if left:
            self._tenants[backend, there] = left
        else:
            self._tenants.pop((backend, there), None)
        return visible

    def replaced(self, tenant: str, backend: str, ref: FileRef, *, proven: bool = True) -> list[tuple[str, FileRef]]:
        """Forget other tenants' files of this name, because a prompt of the tenant's wrote this file.

        A backend that came back empty counts its files from 1 again. If it is not `proven`, forget the files of
        those tenants alone that know no ETag for theirs. Returns each (tenant, name) that means nothing now.
        """
        gone = []
        for other, etag in self.others(tenant, backend, ref).items():
            if not proven and etag != UNTOLD:
                continue
            if (visible := self._forget(other, self._held(other, backend, ref))) is None:
                continue
            if (holder := self._files.pop((other, visible), None)) is not None and self._first.get(visible) is holder:
                del self._first[visible]
            gone.append((other, visible))
            self._anew.add((backend, ref))
        return gone

    def allot(self, tenant: str, wanted: FileRef, digest: str, overwrite: bool) -> FileRef:
        """Return an upload's name (server.py, image_upload): the one wanted, unless other bytes have it.

        The same bytes keep the name that they have. Other bytes get ``name (1).png``, save with `overwrite`.
        """
        if overwrite:
            return wanted
        stem, suffix = splitext(wanted.filename)
        ref = wanted
        for attempt in count(1):
            known = self._files.get((tenant, ref))
            if known is None or (isinstance(known, Upload) and known.digest == digest):
                break
            ref = FileRef(wanted.kind, wanted.subfolder, f"{stem} ({attempt}){suffix}")
        return ref

    def put_upload(self, tenant: str, ref: FileRef, upload: Upload) -> None:
        """Give a name to these bytes from now on."""
        before = self._files.get((tenant, ref))
        if isinstance(before, Holder):
            self._forget(tenant, before)
        if ref not in self._uploads.get(tenant, _NONE):
            for name in _name_and_folders(ref):
                self._owners.setdefault(name, Counter())[tenant] += 1
        self._files[tenant, ref] = upload
        if self._first.get(ref) in (None, before):
            self._first[ref] = upload
        self._uploads.setdefault(tenant, {})[ref] = upload
        self._versions[tenant] = self.version(tenant) + 1

    def drop_upload(self, tenant: str, ref: FileRef) -> None:
        """Drop an upload's name, which then means nothing."""
        upload = self._uploads.get(tenant, {}).pop(ref, None)
        if upload is None:
            return
        for name in _name_and_folders(ref):
            owners = self._owners[name]
            owners[tenant] -= 1
            if not owners[tenant]:
                del owners[tenant]
            if not owners:
                del self._owners[name]
        self._versions[tenant] = self.version(tenant) + 1
        del self._files[tenant, ref]
        if self._first.get(ref) is upload:
            del self._first[ref]

    def is_others_upload(self, tenant: str, ref: FileRef) -> bool:
        """Return True if another tenant has an upload of this name; without a filename, one in or below this folder.

        The upload may be on its way to a backend at this moment.
        """
        owners = self._owners.get(spelled_alike(ref))
        return owners is not None and (len(owners) > 1 or tenant not in owners)

    def uploads(self, tenant: str) -> Mapping[FileRef, Upload]:
        """Return a tenant's uploads by name. Don't change them, nor keep them over an await."""
        return self._uploads.get(tenant, _NONE)

    def has(self, tenant: str) -> bool:
        """Return True if a tenant has a file: an upload, or one that a job of it made."""
        return bool(self._uploads.get(tenant)) or tenant in self._made

    def version(self, tenant: str) -> int:
        """Return a number that grows when a tenant's uploads change; 0 for a tenant that never had any."""
        return self._versions.get(tenant, 0)

    def find(self, tenant: str, visible: FileRef) -> Holder | Upload | None:
        """Return the place of a tenant's file; None for a file that the tenant never saw."""
        return self._files.get((tenant, visible))

    def is_others(self, tenant: str, backend: str, ref: FileRef) -> bool:
        """Return True if a backend's file is other tenants', and not this tenant's."""
        own = self.held(tenant, backend, ref)
        # If a tenant's job reported the file in vain (GONE), don't count the tenant, because it has nothing there.
        theirs = set(self.others(tenant, backend, ref).values()) - {GONE}
        return bool(theirs) and (own is None or theirs != {own.etag})

    def is_others_too(self, tenants: Collection[str]) -> bool:
        """Return True if a tenant that is none of these has files or uploads here."""
        return any(
            own and tenant not in tenants for known in (self._made, self._uploads) for tenant, own in known.items()
        )

    def find_any(self, visible: FileRef) -> Holder | Upload | None:
        """Return the place of any tenant's file, for an admin, who sees all; if several have the name, the oldest."""
        return self._first.get(visible)

    def owners(self, visible: FileRef, upload: Upload) -> list[str]:
        """Return the tenants that gave an upload this name: several, if they brought the same bytes."""
        return [tenant for tenant, own in self._uploads.items() if own.get(visible) == upload]


def _numbered(there: FileRef, parts: Saved) -> tuple[FileRef, str, int]:
    """Return the key that files with one number in one folder of a backend share: folder, prefix and number."""
    saved_there = saved(there.filename) or parts
    return replace(there, filename=""), saved_there.prefix, saved_there.number


def _name_and_folders(ref: FileRef) -> Iterator[FileRef]:
    """Yield a file's name and the folders that it lies in, as a file system may take them for others."""
    alike = spelled_alike(ref)
    yield alike
    folder = alike.subfolder
    while folder:
        yield FileRef(alike.kind, folder, "")
        folder = folder.rpartition("/")[0]


def marked(filename: str, mark: str) -> str:
    """Return `filename` with ``~mark`` before its suffix: a name beside one that is taken."""
    stem, dot, suffix = filename.rpartition(".")
    return f"{stem}~{mark}.{suffix}" if dot and stem else f"{filename}~{mark}"
