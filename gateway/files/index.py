"""Index of files: the backend that has each file, and the name that its tenant sees.

Two backends both write ComfyUI_00001_.png. The first one that a tenant sees keeps its name; one that collides gets
``~<backend>`` before its suffix, for that tenant, everywhere. Uploads live in the same names: those of one tenant.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from itertools import islice

from gateway.comfy.file_refs import FileRef
from gateway.files.deleted import MAX_DELETED, DeletedFiles
from gateway.files.forgotten import ForgottenFiles
from gateway.files.free_names import free_name, numbered_name
from gateway.files.identity import CACHED, GONE, UNTOLD
from gateway.files.left_names import LeftNames
from gateway.files.numbers import Numbers
from gateway.files.upload_owners import UploadOwners
from gateway.files.values import Holder as Holder
from gateway.files.values import Origin as Origin
from gateway.files.values import Place, stored_of_place
from gateway.files.values import Stored as Stored
from gateway.files.values import Upload as Upload
from gateway.store.artifact_records import ArtifactDeletion
from gateway.store.protocol import DeletedRecord, DeletedRemoval

_NONE: Mapping[FileRef, Upload] = {}
_MISSING = object()
# Files of one tenant that are forgotten at a time, before the index looks again for the tenant with most.
TRIM_BATCH = 100


class FileIndex:
    """The files that each tenant may see. Pure bookkeeping: methods return changes to persist, and write nothing.

    Args:
        max_deleted: maximum number of deleted files to remember.

    Attributes:
        deleted: the files that their owners deleted.
        numbers: the numbers in the names of files that jobs made.
        forgotten: the files that `trim` forgot. Its changes are to be written with those of `trim`.
        on_dropped: called with each copy whose deletion `take_dropped` orders.
        left: each (tenant, backend, name there) of a file that object storage alone has now.
    """

    def __init__(self, max_deleted: int = MAX_DELETED) -> None:
        self.deleted = DeletedFiles(max_deleted)
        self.forgotten = ForgottenFiles()
        self._files: dict[tuple[str, FileRef], Place] = {}
        self._names: dict[tuple[str, str, FileRef], FileRef] = {}
        self._tenants: dict[tuple[str, FileRef], tuple[str, ...]] = {}
        self._first: dict[FileRef, Place] = {}
        self._uploads: dict[str, dict[FileRef, Upload]] = {}
        self._versions: dict[str, int] = {}
        self._owners = UploadOwners()
        # Files of a backend whose name another tenant's file had before.
        self._anew: set[tuple[str, FileRef]] = set()
        self.numbers = Numbers(lambda tenant, name: (tenant, name) in self._files)
        # The files that each tenant's jobs made, in the order in which they were last written.
        self._made: dict[str, dict[FileRef, None]] = {}
        self._made_count = 0
        self.left = LeftNames()
        # Copies in object storage that no name leads to any more, until `take_dropped`.
        self._dropped: dict[str, Stored] = {}
        self.on_dropped: Callable[[Stored], None] = lambda _: None

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
        *,
        is_withheld: bool = False,
        before: str = UNTOLD,
    ) -> tuple[FileRef, bool]:
        """Return the tenant's name for a file that `backend` calls `ref`, and True if the tenant newly has the name.

        A file without a name gets `visible` if that name is free. If `visible` is None, it gets the backend's name.

        A file that its job only names does not become the tenant's if it is another tenant's. Neither does a file from
        ComfyUI's cache whose name was given anew, because the cache may mean another tenant's earlier file. Nor does a
        file that `is_withheld`, because its owner deleted it. `etag` is the first identity of a file that is nobody's.
        `before` is the ETag by which the tenant knew the file of this name before the job.

        If object storage has the file that the job wrote over, call `forget` first: then that file keeps its name.
        """
        key = (backend, ref)
        known = self._names.get((tenant, *key))
        if known is not None and origin is Origin.WROTE and self._held(tenant, *key).stored is not None:
            self.detach(tenant, *key)
            known = None
        if known is not None:
            if origin is Origin.WROTE:
                self._know(tenant, known, None)
            return known, False
        others = set(self.others(tenant, backend, ref).values())
        visible = self.free_name(tenant, backend, visible or ref)
        is_doubtful = bool(others) and origin is Origin.EARLIER and key in self._anew
        if is_withheld or is_doubtful or (others - {GONE} and origin is Origin.NAMED):
            return visible, False
        if others and (origin is Origin.EARLIER or etag == CACHED):
            # The file is theirs, whatever lies there by now. If they disagree on its ETag, one of them only named it.
            etag = others.pop() if len(others) == 1 else GONE
        self._put(tenant, visible, Holder(backend, ref, etag, before))
        return visible, True

    def free_name(self, tenant: str, backend: str, ref: FileRef) -> FileRef:
        """Return a name that the tenant does not have: `ref`, or one like it."""
        return free_name(ref, backend, lambda name: (tenant, name) in self._files)

    def others(self, tenant: str, backend: str, ref: FileRef) -> Mapping[str, str | None]:
        """Return by tenant the ETags by which other tenants know a file of a backend."""
        owners = self._tenants.get((backend, ref), ())
        return {owner: self._held(owner, backend, ref).etag for owner in owners if owner != tenant}

    def forget(self, tenant: str, backend: str, there: FileRef) -> FileRef | None:
        """Forget a tenant's file that its backend lost. Return its name; None if it had none.

        If object storage has the file, the name leads there from now on. Else it means nothing.
        """
        visible = self._names.get((tenant, backend, there))
        if visible is not None and self.detach(tenant, backend, there) is None:
            self._remove(tenant, visible)
        return visible

    def delete(self, tenant: str, holder: Holder) -> list[DeletedRecord | DeletedRemoval]:
        """Forget a tenant's file, and remember that its owner deleted it. Return what to write of the latter."""
        at = (holder.backend, holder.there)
        if (visible := self._names.get((tenant, *at))) is not None:
            self._remove(tenant, visible)
        if at not in self._tenants:
            # From now on `deleted` tells whose file had this name.
            self._anew.discard(at)
        return self.deleted.add(tenant, *at, holder.etag)

    def _remove(self, tenant: str, visible: FileRef) -> None:
        """Forget a file that a job made, wherever it is."""
        place = self._files.pop((tenant, visible))
        assert not isinstance(place, Upload)
        if self._first.get(visible) is place:
            del self._first[visible]
        if isinstance(place, Holder):
            self._forget(tenant, place)
        self.numbers.count_name(tenant, visible, -1)
        if self._made[tenant].pop(visible, _MISSING) is None:
            self._made_count -= 1
            if not self._made[tenant]:
                del self._made[tenant]
        if (stored := stored_of_place(place)) is not None:
            self._dropped[stored.key] = stored

    # -- object storage ------------------------------------------------------------------------------------------

    def set_stored(self, tenant: str, visible: FileRef, file: Holder | Upload, stored: Stored) -> bool:
        """Note that object storage has a tenant's file. Return False if the name means another file by now."""
        held = self._files.get((tenant, visible))
        if held is None or isinstance(held, Stored) or held.stored is not None or held != file:
            return False
        if isinstance(held, Holder) and (not held.is_known or (held.etag == UNTOLD and held is not file)):
            return False
        self._place(tenant, visible, replace(held, stored=stored))
        return True

    def renew_stored(self, tenant: str, visible: FileRef, stored: Stored) -> None:
        """Note what is new of a tenant's copy: it is in the store now, or has a copy without metadata beside it."""
        place = self._files.get((tenant, visible))
        if isinstance(place, (Holder, Upload)) and place.stored is not None and place.stored.key == stored.key:
            self._place(tenant, visible, replace(place, stored=stored))
        elif isinstance(place, Stored) and place.key == stored.key:
            self._place(tenant, visible, stored)

    def detach(self, tenant: str, backend: str, there: FileRef) -> FileRef | None:
        """Let a name lead to object storage alone, because its backend has another file by now, or none.

        Return the name, whose record of the backend's file is to go. Return None if object storage lacks the file.
        """
        visible = self._names.get((tenant, backend, there))
        if visible is None or (stored := self._held(tenant, backend, there).stored) is None:
            return None
        self._forget(tenant, self._held(tenant, backend, there))
        self._place(tenant, visible, stored)
        self.left.add((tenant, backend, there))
        return visible

    def restore_stored(self, tenant: str, visible: FileRef, stored: Stored) -> bool:
        """Put back a copy of an earlier run: of the file that has this name, or alone.

        Return False if an upload of other bytes has the name.
        """
        place = self._files.get((tenant, visible))
        if isinstance(place, Upload) and place.digest != stored.upload:
            return False
        if place is None:
            self._enter(tenant, visible, stored)
        else:
            self._place(tenant, visible, stored if isinstance(place, Stored) else replace(place, stored=stored))
        return True

    def drop_stored(self, tenant: str, visible: FileRef) -> FileRef | None:
        """Take a file's copy from its name. Return the name if it means nothing now, else None."""
        place = self._files.get((tenant, visible))
        if isinstance(place, Stored):
            self._remove(tenant, visible)
            return visible
        if place is not None and place.stored is not None:
            self._place(tenant, visible, replace(place, stored=None))
            self._dropped[place.stored.key] = place.stored
        return None

    def take_dropped(self) -> list[ArtifactDeletion]:
        """Return orders to delete copies that no name leads to any more, to be written with what caused them."""
        if not self._dropped:
            return []
        dropped, self._dropped = self._dropped, {}
        for each in dropped.values():
            self.on_dropped(each)
        return [ArtifactDeletion(key) for key in dropped]

    def take_back(self, tenant: str, visible: FileRef, place: Place) -> None:
        """Give a name its former place back. If its copy's deletion is ordered already, the file has no copy now."""
        stored = stored_of_place(place)
        is_gone = stored is not None and self._dropped.pop(stored.key, None) is None
        if isinstance(place, Holder):
            self._put(tenant, visible, replace(place, stored=None) if is_gone else place)
        elif isinstance(place, Upload):
            self.put_upload(tenant, visible, replace(place, stored=None) if is_gone else place)
        elif not is_gone:
            self._enter(tenant, visible, place)

    def _place(self, tenant: str, visible: FileRef, place: Place) -> None:
        """Change the place of a name that a tenant has."""
        before = self._files[tenant, visible]
        self._files[tenant, visible] = place
        if isinstance(place, Upload):
            self._uploads[tenant][visible] = place
        if self._first.get(visible) is before:
            self._first[visible] = place

    def _enter(self, tenant: str, visible: FileRef, place: Holder | Stored) -> None:
        """Give a tenant a name that it does not have."""
        self._files[tenant, visible] = place
        self._first.setdefault(visible, place)
        self.numbers.count_name(tenant, visible, 1)
        made = self._made.setdefault(tenant, {})
        self._made_count += visible not in made
        made[visible] = None

    # -- identities ----------------------------------------------------------------------------------------------

    def _held(self, tenant: str, backend: str, ref: FileRef) -> Holder:
        held = self._files[tenant, self._names[tenant, backend, ref]]
        assert isinstance(held, Holder)
        return held

    def _know(self, tenant: str, visible: FileRef, etag: str | None) -> None:
        held = self._files[tenant, visible]
        assert isinstance(held, Holder)
        before = held.etag if held.is_known and held.etag != GONE else held.before
        now = replace(held, etag=etag, before=UNTOLD if etag is not None else before or UNTOLD)
        self._place(tenant, visible, now)
        made = self._made[tenant]
        made[visible] = made.pop(visible)

    def held(self, tenant: str, backend: str, ref: FileRef) -> Holder | None:
        """Return a file of a backend, as the tenant has it; None if it is not the tenant's."""
        return self._held(tenant, backend, ref) if (tenant, backend, ref) in self._names else None

    def holders(self, backend: str, ref: FileRef) -> list[tuple[str, FileRef, Holder]]:
        """Return each tenant that has a file of a backend, with the tenant's name for it and the file."""
        owners = self._tenants.get((backend, ref), ())
        return [(tenant, self._names[tenant, backend, ref], self._held(tenant, backend, ref)) for tenant in owners]

    def names(self) -> list[tuple[str, FileRef]]:
        """Return each (tenant, name)."""
        return list(self._files)

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

    def note_anew(self, backend: str, ref: FileRef) -> None:
        """Note that another tenant's file, which was deleted, had this name on the backend before."""
        self._anew.add((backend, ref))

    def is_anew(self, backend: str, ref: FileRef) -> bool:
        """Return True if another tenant's file had this name on the backend before."""
        return (backend, ref) in self._anew

    def _put(self, tenant: str, visible: FileRef, holder: Holder) -> None:
        self._enter(tenant, visible, holder)
        self._names[tenant, holder.backend, holder.there] = visible
        self.numbers.count_file(tenant, visible, holder.backend, holder.there, 1)
        at = (holder.backend, holder.there)
        self._tenants[at] = (*self._tenants.get(at, ()), tenant)

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
                held = self._files[tenant, visible]
                self._remove(tenant, visible)
                if isinstance(held, Holder):
                    self.forgotten.add(held.backend, held.there, held.etag)
                if isinstance(held, Holder) and (held.backend, held.there) not in self._tenants:
                    self._anew.discard((held.backend, held.there))
                gone.append((tenant, visible))
        return gone

    def _forget(self, tenant: str, holder: Holder) -> None:
        """Take a file of a backend from a tenant. The name stays, and the caller gives it another place, or none."""
        backend, there = holder.backend, holder.there
        visible = self._names.pop((tenant, backend, there), None)
        if visible is not None:
            self.numbers.count_file(tenant, visible, backend, there, -1)
        left = tuple(other for other in self._tenants.get((backend, there), ()) if other != tenant)
        if left:
            self._tenants[backend, there] = left
        else:
            self._tenants.pop((backend, there), None)

    def replaced(self, tenant: str, backend: str, ref: FileRef, *, proven: bool = True) -> list[tuple[str, FileRef]]:
        """Forget other tenants' files of this name, because a prompt of the tenant's wrote this file.

        A backend that came back empty counts its files from 1 again. If it is not `proven`, forget the files of
        those tenants alone that know no ETag for theirs. Returns each (tenant, name) that leads to no backend now.
        """
        gone = []
        for other, etag in self.others(tenant, backend, ref).items():
            if not proven and etag != UNTOLD:
                continue
            if (visible := self.forget(other, backend, ref)) is not None:
                gone.append((other, visible))
                self._anew.add((backend, ref))
        return gone

    def allot(self, tenant: str, wanted: FileRef, digest: str, overwrite: bool) -> FileRef:
        """Return an upload's name (server.py, image_upload): the one wanted, unless other bytes have it.

        The same bytes keep the name that they have. Other bytes get ``name (1).png``, save with `overwrite`.
        """

        def is_free(ref: FileRef) -> bool:
            known = self._files.get((tenant, ref))
            has_same = (isinstance(known, Upload) and known.digest == digest) or (
                isinstance(known, Stored) and known.upload == digest
            )
            return known is None or has_same

        return wanted if overwrite else numbered_name(wanted, is_free)

    def put_upload(self, tenant: str, ref: FileRef, upload: Upload) -> None:
        """Give a name to these bytes from now on."""
        before = self._files.get((tenant, ref))
        was_first = self._first.get(ref) in (None, before)
        if isinstance(before, (Holder, Stored)):
            self._remove(tenant, ref)
        elif before is not None and before.stored is not None:
            if before.digest == upload.digest:
                upload = replace(upload, stored=before.stored)
            else:
                self._dropped[before.stored.key] = before.stored
        if ref not in self._uploads.get(tenant, _NONE):
            self._owners.enter(tenant, ref)
        self._files[tenant, ref] = upload
        if was_first:
            self._first[ref] = upload
        self._uploads.setdefault(tenant, {})[ref] = upload
        self._versions[tenant] = self.version(tenant) + 1

    def drop_upload(self, tenant: str, ref: FileRef, *, keeps_copy: bool = False) -> None:
        """Drop an upload's name, which then means nothing. With `keeps_copy` it leads to object storage, if it can."""
        upload = self._uploads.get(tenant, {}).pop(ref, None)
        if upload is None:
            return
        self._owners.leave(tenant, ref)
        self._versions[tenant] = self.version(tenant) + 1
        del self._files[tenant, ref]
        if self._first.get(ref) is upload:
            del self._first[ref]
        if upload.stored is not None and keeps_copy:
            self._enter(tenant, ref, upload.stored)
        elif upload.stored is not None:
            self._dropped[upload.stored.key] = upload.stored

    def is_others_upload(self, tenant: str, ref: FileRef) -> bool:
        """Return True if another tenant has an upload of this name; without a filename, one in or below this folder.

        The upload may be on its way to a backend at this moment.
        """
        return self._owners.is_others(tenant, ref)

    def uploads(self, tenant: str) -> Mapping[FileRef, Upload]:
        """Return a tenant's uploads by name. Don't change them, nor keep them over an await."""
        return self._uploads.get(tenant, _NONE)

    def has(self, tenant: str) -> bool:
        """Return True if a tenant has a file: an upload, or one that a job of it made."""
        return bool(self._uploads.get(tenant)) or tenant in self._made

    def makers(self) -> Collection[str]:
        """Return the tenants whose jobs made files. Don't keep them over an await."""
        return self._made.keys()

    def version(self, tenant: str) -> int:
        """Return a number that grows when a tenant's uploads change; 0 for a tenant that never had any."""
        return self._versions.get(tenant, 0)

    def find(self, tenant: str, visible: FileRef) -> Place | None:
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

    def find_any(self, visible: FileRef) -> Place | None:
        """Return the place of any tenant's file, for an admin, who sees all; if several have the name, the oldest."""
        return self._first.get(visible)

    def owners(self, visible: FileRef, upload: Upload) -> list[str]:
        """Return the tenants that gave an upload this name: several, if they brought the same bytes."""
        return [tenant for tenant, own in self._uploads.items() if own.get(visible) == upload]
