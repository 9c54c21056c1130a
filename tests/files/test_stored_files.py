"""Names of files whose bytes are in object storage: none of them ever shows another file's bytes."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.comfy.file_refs import FileRef
from gateway.comfy.saved_names import saved
from gateway.files.identity import are_same
from gateway.files.index import FileIndex, Holder, Origin, Stored, Upload
from gateway.store.artifact_records import ArtifactDeletion

REF = FileRef("output", "", "ComfyUI_00001_.png")
MARKED = FileRef("output", "", "ComfyUI_00001_~b1.png")


def copy(name: str) -> Stored:
    return Stored(name, 1, f"digest of {name}")


def with_copy(tenant: str = "t", files: FileIndex | None = None) -> FileIndex:
    """Return an index in which the tenant's file REF of b1 is stored."""
    files = files or FileIndex()
    files.claim(tenant, "b1", REF)
    files.know(tenant, "b1", REF, "e1")
    held = files.held(tenant, "b1", REF)
    assert held is not None
    assert files.set_stored(tenant, REF, held, copy(tenant))
    return files


def test_a_file_that_is_written_over_keeps_its_name_if_it_is_stored() -> None:
    files = with_copy()
    assert files.find("t", REF) == files.find_any(REF) == Holder("b1", REF, "e1", stored=copy("t"))
    assert files.claim("t", "b1", REF, Origin.EARLIER) == (REF, False)
    assert files.claim("t", "b1", REF, Origin.WROTE) == (MARKED, True)
    assert files.claim("t", "b1", REF, Origin.WROTE) == (MARKED, False)
    assert files.find("t", REF) == files.find_any(REF) == copy("t")
    assert files.find("t", MARKED) == Holder("b1", REF, None)
    assert files.take_dropped() == []


def test_a_thousand_files_of_one_name_all_have_one() -> None:
    files = with_copy()
    for n in range(1, 1000):
        name = MARKED.filename if n == 1 else f"ComfyUI_00001_~b1-{n}.png"
        visible, is_new = files.claim("t", "b1", REF)
        assert (visible, is_new) == (FileRef("output", "", name), True)
        files.know("t", "b1", REF, f"e{n}")
        held = files.held("t", "b1", REF)
        assert held is not None
        assert files.set_stored("t", visible, held, copy(str(n)))


def test_a_copy_is_only_noted_for_the_file_that_was_copied() -> None:
    files = FileIndex()
    files.claim("t", "b1", REF)
    held = files.held("t", "b1", REF)
    assert held is not None
    assert not files.set_stored("t", REF, held, copy("x")), "its job still runs"
    files.know("t", "b1", REF, "")
    untold = files.held("t", "b1", REF)
    assert untold is not None
    files.claim("t", "b1", REF)
    files.know("t", "b1", REF, "")
    assert not files.set_stored("t", REF, untold, copy("x")), "no ETag tells that it is the same file"
    assert not files.set_stored("u", REF, untold, copy("x"))
    files.put_upload("t", REF, Upload("d", 1))
    assert not files.set_stored("t", REF, untold, copy("x"))


def test_another_tenant_that_writes_over_a_stored_file_does_not_take_its_name() -> None:
    files = with_copy()
    assert files.replaced("u", "b1", REF) == [("t", REF)]
    files.claim("u", "b1", REF)
    assert (files.find("t", REF), files.find("u", REF)) == (copy("t"), Holder("b1", REF, None))
    assert (files.held("t", "b1", REF), files.is_anew("b1", REF)) == (None, True)
    assert files.find_any(REF) == copy("t")


def test_a_name_that_ends_drops_its_copy_once() -> None:
    dropped: list[Stored] = []
    order = [ArtifactDeletion("t")]
    deleted, trimmed, uploaded, detached, kept = (with_copy() for _ in range(5))
    deleted.on_dropped = dropped.append
    held = deleted.held("t", "b1", REF)
    assert held is not None
    deleted.delete("t", held)
    assert (deleted.find("t", REF), deleted.take_dropped(), deleted.take_dropped()) == (None, order, [])
    assert dropped == [copy("t")]
    assert trimmed.trim(0, lambda _: True) == [("t", REF)]
    assert (trimmed.take_dropped(), len(trimmed), trimmed.has("t")) == (order, 0, False)
    uploaded.put_upload("t", REF, Upload("d", 1))
    assert (uploaded.take_dropped(), uploaded.find_any(REF)) == (order, Upload("d", 1))
    assert detached.forget("t", "b1", REF) == REF
    assert detached.find("t", REF) == copy("t")
    assert (detached.trim(0, lambda _: True), detached.take_dropped()) == ([("t", REF)], order)
    assert detached.find_any(REF) is None
    assert (kept.drop_stored("t", REF), kept.take_dropped()) == (None, order)
    assert kept.find("t", REF) == Holder("b1", REF, "e1")
    kept = with_copy()
    kept.forget("t", "b1", REF)
    assert (kept.drop_stored("t", REF), kept.take_dropped(), kept.find("t", REF)) == (REF, order, None)


def test_an_upload_that_the_journal_refused_gives_the_name_back_to_the_copy() -> None:
    for is_detached in (False, True):
        for is_ordered in (False, True):
            files = with_copy()
            if is_detached:
                files.forget("t", "b1", REF)
            before = files.find("t", REF)
            assert isinstance(before, (Holder, Stored))
            files.put_upload("t", REF, Upload("d", 1))
            if is_ordered:
                files.take_dropped()
            files.drop_upload("t", REF)
            files.take_back("t", REF, before)
            without = None if is_detached else Holder("b1", REF, "e1")
            assert files.find("t", REF) == (without if is_ordered else before)
            assert files.take_dropped() == []


def test_numbers_go_on_after_the_names_that_only_storage_has() -> None:
    there, folder = FileRef("output", "o/s/f", "a_00001_.png"), FileRef("output", "", "")
    parts = saved(there.filename)
    assert parts is not None
    files, first = FileIndex(), FileRef("output", "", "a_00001_.png")
    files.claim("t", "b1", there, visible=first)
    files.know("t", "b1", there, "e1")
    held = files.held("t", "b1", there)
    assert held is not None
    assert files.set_stored("t", first, held, copy("a"))
    files.forget("t", "b1", there)
    assert (
        files.numbers.next_number("t", folder, parts) == files.numbers.number_for("t", "b1", there, folder, parts) == 2
    )
    files.drop_stored("t", first)
    assert files.numbers.next_number("t", folder, parts) == 1


def test_a_restart_brings_copies_back() -> None:
    files = FileIndex()
    files.restore("t", REF, Holder("b1", REF, "e1"))
    other = FileRef("output", "", "b.png")
    assert files.restore_stored("t", REF, copy("a"))
    assert files.restore_stored("t", other, copy("b"))
    files.put_upload("t", FileRef("input", "", "c.png"), Upload("d", 1))
    assert not files.restore_stored("t", FileRef("input", "", "c.png"), copy("c"))
    assert files.find("t", REF) == Holder("b1", REF, "e1", stored=copy("a"))
    assert files.find("t", other) == copy("b")
    assert files.claim("t", "b1", other) == (FileRef("output", "", "b~b1.png"), True)


def test_an_uploads_copy_outlives_what_the_gateway_keeps() -> None:
    """Until its owner deletes the upload, or brings other bytes under its name."""
    ref, upload, stored = FileRef("input", "", "a.png"), Upload("d", 1), Stored("k", 1, "digest", upload="d")

    def made() -> FileIndex:
        files = FileIndex()
        files.put_upload("t", ref, upload)
        assert files.set_stored("t", ref, Upload("d", 1), stored)
        assert not files.set_stored("t", ref, upload, copy("again"))
        assert not files.set_stored("u", ref, upload, copy("u"))
        return files

    files = made()
    for place in (files.find("t", ref), files.uploads("t")[ref], files.find_any(ref)):
        assert isinstance(place, Upload)
        assert (place, place.stored) == (upload, stored)
    files.put_upload("t", ref, Upload("d", 1, 5))
    assert files.uploads("t")[ref].stored == stored, "the same bytes came again"
    files.drop_upload("t", ref, keeps_copy=True)
    assert (files.find("t", ref), files.find_any(ref), files.uploads("t")) == (stored, stored, {})
    assert files.allot("t", ref, "d", overwrite=False) == ref
    assert files.allot("t", ref, "other", overwrite=False) == FileRef("input", "", "a (1).png")
    assert files.take_dropped() == []
    files.put_upload("t", ref, upload)
    assert files.take_dropped() == [ArtifactDeletion("k")]
    for name in ("drop_upload", "put_upload", "drop_stored"):
        files = made()
        match name:
            case "drop_upload":
                files.drop_upload("t", ref)
            case "put_upload":
                files.put_upload("t", ref, Upload("other", 1))
            case _:
                files.drop_stored("t", ref)
        assert files.take_dropped() == [ArtifactDeletion("k")]
    files = made()
    before = files.uploads("t")[ref]
    files.put_upload("t", ref, Upload("other", 1))
    files.drop_upload("t", ref)
    files.take_back("t", ref, before)
    assert (files.uploads("t")[ref].stored, files.take_dropped()) == (stored, [])


def test_a_restart_brings_uploads_copies_back() -> None:
    files = FileIndex()
    refs = [FileRef("input", "", f"{name}.png") for name in "abc"]
    files.put_upload("t", refs[0], Upload("d0", 1))
    files.put_upload("t", refs[1], Upload("other", 1))
    stored = [Stored(f"k{n}", 1, "digest", upload=f"d{n}") for n in range(3)]
    assert [files.restore_stored("t", *each) for each in zip(refs, stored, strict=True)] == [True, False, True]
    assert (files.uploads("t")[refs[0]].stored, files.find("t", refs[2])) == (stored[0], stored[2])


@dataclass
class World:
    """Files of two tenants on two backends, which jobs write, and what each name must show."""

    files: FileIndex = field(default_factory=FileIndex)
    # The bytes on backends, by (backend, ref): the number of the write that made them.
    disks: dict[tuple[str, FileRef], int] = field(default_factory=dict)
    bucket: dict[str, int] = field(default_factory=dict)
    names: dict[tuple[str, FileRef], int] = field(default_factory=dict)
    owners: dict[int, str] = field(default_factory=dict)

    def write(self, tenant: str, backend: str, ref: FileRef, *, is_new: bool) -> None:
        """Let a job of a tenant write a file, or show the one that an earlier job wrote."""
        files = self.files
        if is_new:
            self.disks[backend, ref] = number = len(self.owners)
            self.owners[number] = tenant
        elif (known := self.disks.get((backend, ref))) is None or self.owners[known] != tenant:
            return
        else:
            number = known
        if is_new:
            for other, name in files.replaced(tenant, backend, ref):
                if not isinstance(files.find(other, name), Stored):
                    del self.names[other, name]
        held = files.held(tenant, backend, ref)
        if is_new and held is not None and held.stored is not None:
            files.forget(tenant, backend, ref)
        visible, _ = files.claim(tenant, backend, ref, Origin.WROTE if is_new else Origin.EARLIER)
        files.know(tenant, backend, ref, f'"{number:x}-1"')
        self.names[tenant, visible] = number

    def store(self, tenant: str, visible: FileRef, *, late: Holder | None) -> None:
        """Copy a file that is there, and note it for what was seen when the copy began."""
        place = late or self.files.find(tenant, visible)
        if not isinstance(place, Holder):
            return
        number = self.disks.get((place.backend, place.there))
        if number is None or place.etag is None or not are_same(place.etag, f'"{number:x}-1"'):
            return
        stored = copy(f"{number}-{len(self.bucket)}")
        self.bucket[stored.key] = number
        self.files.set_stored(tenant, visible, place, stored)

    def shown(self, tenant: str, visible: FileRef) -> int | None:
        """Return what the gateway shows by a name."""
        place = self.files.find(tenant, visible)
        stored = place.stored if isinstance(place, Holder) else place
        if isinstance(stored, Stored):
            return self.bucket[stored.key]
        if isinstance(place, Holder):
            number = self.disks.get((place.backend, place.there))
            return number if number is not None and place.etag == f'"{number:x}-1"' else None
        return None

    def check(self) -> None:
        """Fail if a name shows another file's bytes, or if a stored file is lost."""
        for (tenant, visible), number in self.names.items():
            shown = self.shown(tenant, visible)
            assert shown in (None, number)
            assert shown is None or self.owners[shown] == tenant
            place = self.files.find(tenant, visible)
            if isinstance(place, Stored) or (isinstance(place, Holder) and place.stored is not None):
                assert shown == number


_REFS = [FileRef("output", "", "a.png"), FileRef("output", "", "a~b1.png"), FileRef("output", "o/s/f", "a.png")]
_STEP = st.tuples(
    st.sampled_from(["write", "write", "show", "store", "store", "seen", "late", "empty", "delete", "release"]),
    st.sampled_from("tu"),
    st.sampled_from(["b1", "b2"]),
    st.sampled_from(_REFS),
    st.integers(0, 20),
)


@settings(max_examples=150)
@given(st.lists(_STEP, max_size=30))
def test_a_name_never_shows_another_files_bytes(steps: list[tuple[str, str, str, FileRef, int]]) -> None:
    world, seen = World(), dict[tuple[str, FileRef], Holder]()
    for action, tenant, backend, ref, which in steps:
        names = [name for owner, name in world.names if owner == tenant]
        visible = names[which % len(names)] if names else ref
        place = world.files.find(tenant, visible)
        match action:
            case "write" | "show":
                world.write(tenant, backend, ref, is_new=action == "write")
            case "store":
                world.store(tenant, visible, late=None)
            case "seen" if isinstance(place, Holder):
                seen[tenant, visible] = place
            case "late":
                world.store(tenant, visible, late=seen.get((tenant, visible)))
            case "empty":
                world.disks = {at: number for at, number in world.disks.items() if at[0] != backend}
            case "delete" if isinstance(place, Holder):
                world.files.delete(tenant, place)
                del world.names[tenant, visible]
            case "release" if place is not None:
                if world.files.drop_stored(tenant, visible) is not None:
                    del world.names[tenant, visible]
        for order in world.files.take_dropped():
            del world.bucket[order.key]
        world.check()
