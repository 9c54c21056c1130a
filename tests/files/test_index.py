"""Which file is where, and what each tenant calls it."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from gateway.comfy.file_refs import FileRef, rename
from gateway.comfy.saved_names import saved
from gateway.files.free_names import marked
from gateway.files.identity import CACHED, GONE, UNTOLD
from gateway.files.index import FileIndex, Holder, Origin, Upload

REF = FileRef("output", "", "ComfyUI_00001_.png")


def named(filename: str) -> FileRef:
    return FileRef("output", "", filename)


def test_the_first_keeps_its_name_and_one_that_collides_is_marked() -> None:
    files = FileIndex()
    assert files.claim("t", "b1", REF) == (named("ComfyUI_00001_.png"), True)
    assert files.claim("t", "b2", REF) == (named("ComfyUI_00001_~b2.png"), True)
    assert files.claim("t", "b2", REF) == (named("ComfyUI_00001_~b2.png"), False)
    assert files.claim("other", "b2", REF) == (named("ComfyUI_00001_.png"), True)
    assert files.find("t", REF) == Holder("b1", REF, None)
    assert files.find("t", FileRef("output", "", "ComfyUI_00001_~b2.png")) == Holder("b2", REF, None)
    assert files.find("other", REF) == Holder("b2", REF, None)
    assert files.find("third", REF) is None


def test_a_file_that_is_really_called_so() -> None:
    files = FileIndex()
    files.claim("t", "b1", FileRef("output", "", "x~b2.png"))
    files.claim("t", "b1", FileRef("output", "", "x.png"))
    assert files.claim("t", "b2", FileRef("output", "", "x.png"))[0] == named("x~b2-2.png")


def test_a_file_that_is_only_named_stays_its_owners() -> None:
    files = FileIndex()
    assert files.claim("t", "b1", REF, Origin.NAMED) == (REF, True)
    assert files.claim("thief", "b1", REF, Origin.NAMED) == (REF, False)
    assert files.find("thief", REF) is None
    assert files.claim("twin", "b1", REF, Origin.EARLIER) == (REF, True)


def test_a_file_that_was_written_anew_is_its_writers_alone() -> None:
    files = FileIndex()
    for tenant in ("t", "u"):
        files.claim(tenant, "b1", REF)
    assert files.replaced("u", "b1", REF) == [("t", REF)]
    assert files.replaced("u", "b1", REF) == []
    assert (files.find("t", REF), files.find("u", REF)) == (None, Holder("b1", REF, None))
    assert files.claim("t", "b2", REF) == (REF, True)


def test_a_file_is_known_by_its_etag_until_it_is_written_again() -> None:
    files = FileIndex()
    assert (files.held("t", "b1", REF), files.know("t", "b1", REF, "e1")) == (None, False)
    files.claim("t", "b1", REF)
    assert files.held("t", "b1", REF) == Holder("b1", REF, None)
    assert files.know("t", "b1", REF, "e1")
    files.claim("t", "b1", REF, Origin.EARLIER)
    assert (files.find("t", REF), files.find_any(REF)) == (Holder("b1", REF, "e1"),) * 2
    for _ in range(2):
        files.claim("t", "b1", REF, Origin.WROTE)
        assert files.held("t", "b1", REF) == Holder("b1", REF, None, before="e1")
    files.know("t", "b1", REF, "e2")
    assert files.held("t", "b1", REF) == Holder("b1", REF, "e2")


def test_the_caches_file_is_what_it_was_for_others() -> None:
    files = FileIndex()
    files.claim("t", "b1", REF)
    files.know("t", "b1", REF, "e1")
    files.claim("twin", "b1", REF, Origin.EARLIER)
    assert files.others("t", "b1", REF) == {"twin": "e1"}


def test_who_only_told_of_a_file_has_nothing_of_it() -> None:
    """Neither of another's, nor of nobody's, by whatever key that is told again out of the cache."""
    files = FileIndex()
    files.claim("t", "b1", REF)
    files.know("t", "b1", REF, "e1")
    assert files.replaced("thief", "b1", REF, proven=False) == []
    files.claim("thief", "b1", REF)
    files.know("thief", "b1", REF, GONE)
    for origin in (Origin.EARLIER, Origin.NAMED):
        files.claim("accomplice", "b1", REF, origin, CACHED)
    assert files.others("t", "b1", REF) == {"thief": GONE, "accomplice": GONE}
    other = FileRef("output", "", "mesh.glb")
    files.claim("thief", "b1", other, Origin.NAMED)
    files.know("thief", "b1", other, GONE)
    assert not files.is_others("t", "b1", other)
    files.claim("accomplice", "b1", other, Origin.NAMED, CACHED)
    files.claim("t", "b1", other, Origin.NAMED)
    assert files.others("thief", "b1", other) == {"accomplice": GONE, "t": None}


def test_who_could_not_tell_ones_file_from_what_is_written_loses_it_at_once() -> None:
    files = FileIndex()
    for tenant, etag in (("told", "e1"), ("untold", UNTOLD)):
        files.claim(tenant, "b1", REF)
        files.know(tenant, "b1", REF, etag)
    assert files.replaced("u", "b1", REF, proven=False) == [("untold", REF)]
    assert files.replaced("u", "b1", REF) == [("told", REF)]


def test_what_the_cache_means_is_nobodys_once_its_name_was_given_anew() -> None:
    files = FileIndex()
    files.claim("t", "b1", REF)
    assert not files.is_anew("b1", REF)
    files.replaced("u", "b1", REF)
    files.claim("u", "b1", REF)
    assert files.is_anew("b1", REF)
    again = FileIndex()
    again.restore("u", REF, Holder("b1", REF, "e2"), is_anew=True)
    for index in (files, again):
        assert index.claim("t", "b1", REF, Origin.EARLIER) == (REF, False)
        assert index.find("t", REF) is None
        assert index.claim("u", "b1", REF, Origin.EARLIER) == (REF, False)
        assert index.find("u", REF) is not None


def test_a_name_that_leads_nowhere_is_not_one_that_leads_elsewhere() -> None:
    files = FileIndex()
    files.claim("t", "b2", REF)
    files.claim("u", "b1", REF)
    assert files.claim("t", "b1", REF, Origin.NAMED) == (named("ComfyUI_00001_~b1.png"), False)
    assert files.find("t", FileRef("output", "", "ComfyUI_00001_~b1.png")) is None


def test_suffixes() -> None:
    assert marked("a.tar.gz", "b") == "a.tar~b.gz"
    assert marked("noext", "b") == "noext~b"
    assert marked(".hidden", "b") == ".hidden~b"


@given(
    st.lists(
        st.tuples(
            st.sampled_from("tu"),
            st.sampled_from(["b1", "b2", "b3"]),
            st.sampled_from(["output", "temp"]),
            st.sampled_from(["", "s"]),
            st.sampled_from(["a.png", "a~b1.png", "a~b2.png", "a~b2-2.png", "b"]),
        )
    )
)
def test_names_are_unique_in_a_tenant_and_lead_back(claims: list[tuple[str, str, str, str, str]]) -> None:
    files = FileIndex()
    given_names: dict[tuple[str, FileRef], tuple[str, FileRef]] = {}
    for tenant, backend, kind, subfolder, filename in claims:
        ref = FileRef(kind, subfolder, filename)
        visible, _ = files.claim(tenant, backend, ref)
        assert given_names.setdefault((tenant, visible), (backend, ref)) == (backend, ref)
        assert files.find(tenant, visible) == Holder(backend, ref, None)


def test_outputs_are_renamed_however_deep() -> None:
    output = {
        "images": [{"filename": "a.png", "subfolder": "", "type": "output"}],
        "gifs": [{"nested": {"list": [{"filename": "b.mp4", "format": "video/mp4"}]}}],
        "text": ["a.png"],
        "animated": [True],
    }
    renamed = rename(output, lambda ref, _: replace(ref, filename=f"new-{ref.filename}"))
    assert renamed["images"][0]["filename"] == "new-a.png"
    assert renamed["gifs"][0]["nested"]["list"][0] == {"filename": "new-b.mp4", "format": "video/mp4"}
    assert renamed["text"] == ["a.png"]
    assert rename(output, lambda ref, _: ref) is output


def test_outputs_are_moved_to_other_folders() -> None:
    output = {
        "images": [{"filename": "a.png", "subfolder": "o/secret/f", "type": "output"}, {"filename": "b.png"}],
        "result": ["o/secret/f/3d/mesh.glb [output]", "o/secret/f/mesh.glb", "temp/deep/bg_1.png", "bare.glb"],
    }

    def moved(ref: FileRef, _: bool) -> FileRef:
        folder = ref.subfolder.removeprefix("o/secret/f").removeprefix("/")
        return FileRef(ref.kind, folder if ref.filename != "bare.glb" else "into", ref.filename)

    renamed = rename(output, moved)
    assert renamed["images"] == [{"filename": "a.png", "subfolder": "", "type": "output"}, {"filename": "b.png"}]
    assert renamed["result"] == ["3d/mesh.glb [output]", "mesh.glb", "temp/deep/bg_1.png", "into/bare.glb"]


def numbered(n: int) -> FileRef:
    return FileRef("output", "", f"{n}.png")


def test_of_whoever_has_most_the_oldest_are_forgotten() -> None:
    files = FileIndex()
    for n in range(5):
        files.claim("many", "b1", numbered(n))
    files.claim("few", "b1", numbered(9))
    files.claim("many", "b1", numbered(0))
    assert files.trim(6, lambda _: True) == []
    assert files.trim(4, lambda _: True) == [("many", numbered(1)), ("many", numbered(2))]
    assert [files.find("many", numbered(n)) is not None for n in range(5)] == [True, False, False, True, True]
    assert files.claim("other", "b1", numbered(1), Origin.NAMED) == (named("1.png"), True), "nobody's any more"
    assert files.trim(0, lambda tenant: tenant == "few") == [("few", numbered(9))]
    assert files.find_any(numbered(9)) is None
    assert (files.find("few", numbered(9)), len(files)) == (None, 4)


def test_what_was_replaced_or_is_an_upload_does_not_count() -> None:
    files = FileIndex()
    files.claim("t", "b1", numbered(1))
    files.replaced("u", "b1", numbered(1))
    files.claim("u", "b1", numbered(1))
    files.put_upload("t", numbered(2), Upload("aa", 1))
    files.claim("t", "b1", numbered(3))
    files.put_upload("t", numbered(3), Upload("bb", 1))
    assert files.trim(1, lambda _: True) == []
    assert files.trim(0, lambda _: True) == [("u", numbered(1))]
    assert not files.is_anew("b1", numbered(1))
    assert files.trim(0, lambda _: True) == []


def test_an_upload_is_its_owners_before_any_backend_has_it() -> None:
    """Its name and its folders, in any spelling that a file system may take for the same, until it is gone."""
    files = FileIndex()
    ref = FileRef("input", "Pics/x", "Caf\u00e9.png")
    files.put_upload("anna", ref, Upload("d1", 1))
    files.put_upload("anna", ref, Upload("d2", 1))
    spellings = [
        ref,
        FileRef("input", "pics/X ", "CAFE\u0301.PNG"),
        FileRef("input", "pics", ""),
        FileRef("input", "PICS/x", ""),
    ]
    for spelled in spellings:
        assert files.is_others_upload("ben", spelled)
        assert not files.is_others_upload("anna", spelled)
    assert not files.is_others_upload("ben", FileRef("input", "", "Caf\u00e9.png"))
    files.put_upload("ben", FileRef("input", "pics", "b.png"), Upload("d3", 1))
    assert files.is_others_upload("anna", FileRef("input", "pics", ""))
    files.drop_upload("anna", ref)
    assert not any(files.is_others_upload("ben", spelled) for spelled in spellings)


def test_files_of_one_number_have_one_number_also_when_they_are_written_anew() -> None:
    """A film and its first picture, in a folder that was emptied."""
    files = FileIndex()
    there = {suffix: FileRef("output", "o/s/f", f"film_00001{suffix}") for suffix in (".mp4", ".png")}
    folder = FileRef("output", "", "")

    def visible(suffix: str, number: int) -> FileRef:
        return FileRef("output", "", f"film_{number:05}{suffix}")

    for suffix, ref in there.items():
        parts = saved(ref.filename)
        assert parts is not None
        number = files.numbers.number_for("t", "b1", ref, folder, parts)
        assert files.claim("t", "b1", ref, visible=visible(suffix, number)) == (visible(suffix, 1), True)
    film, picture = there.values()
    parts = saved(film.filename)
    assert parts is not None
    assert files.numbers.next_number("t", folder, parts) == 2
    assert files.forget("t", "b1", film) == visible(".mp4", 1)
    files.claim("t", "b1", film, visible=visible(".mp4", 2))
    assert files.numbers.number_for("t", "b1", picture, folder, parts) == 2
    assert files.forget("t", "b1", picture) == visible(".png", 1)
    assert files.numbers.number_for("t", "b1", picture, folder, parts) == 2
    assert files.numbers.next_number("t", folder, parts) == 3


def test_a_count_goes_with_the_last_file_that_it_counts() -> None:
    files = FileIndex()
    parts, folder = saved("pic_00007_.png"), FileRef("output", "", "")
    assert parts is not None
    files.claim("t", "b1", named("pic_00007_.png"))
    assert files.numbers.next_number("t", folder, parts) == 8
    assert files.trim(0, lambda _: True) == [("t", named("pic_00007_.png"))]
    assert files.numbers.next_number("t", folder, replace(parts, number=3)) == 3


def test_pictures_of_a_batch_with_a_prefix_each_keep_their_numbers() -> None:
    """ComfyUI counts on over a batch, also if the prefix has ``%batch_num%`` (nodes.py, SaveImage)."""
    files = FileIndex()
    for place, name in enumerate(("x0_00001_.png", "x1_00002_.png", "x2_00003_.png")):
        there, parts = FileRef("output", "o/s/f", name), saved(name)
        assert parts is not None
        number = files.numbers.number_for("t", "b1", there, FileRef("output", "", ""), parts)
        assert number == place + 1
        assert files.claim("t", "b1", there, visible=named(name)) == (named(name), True)
