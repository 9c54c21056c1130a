"""Which file is where, and what each tenant calls it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.comfy.outputs import FileRef, rename
from gateway.fleet.files import FileIndex, Holder, marked

REF = FileRef("output", "", "ComfyUI_00001_.png")


def test_the_first_keeps_its_name_and_one_that_collides_is_marked() -> None:
    files = FileIndex()
    assert files.claim("t", "b1", REF) == ("ComfyUI_00001_.png", True)
    assert files.claim("t", "b2", REF) == ("ComfyUI_00001_~b2.png", True)
    assert files.claim("t", "b2", REF) == ("ComfyUI_00001_~b2.png", False)
    assert files.claim("other", "b2", REF) == ("ComfyUI_00001_.png", True)
    assert files.find("t", REF) == Holder("b1", "ComfyUI_00001_.png")
    assert files.find("t", FileRef("output", "", "ComfyUI_00001_~b2.png")) == Holder("b2", "ComfyUI_00001_.png")
    assert files.find("other", REF) == Holder("b2", "ComfyUI_00001_.png")
    assert files.find("third", REF) is None


def test_a_file_that_is_really_called_so() -> None:
    files = FileIndex()
    files.claim("t", "b1", FileRef("output", "", "x~b2.png"))
    files.claim("t", "b1", FileRef("output", "", "x.png"))
    assert files.claim("t", "b2", FileRef("output", "", "x.png"))[0] == "x~b2-2.png"


def test_a_file_that_is_only_named_stays_its_owners() -> None:
    files = FileIndex()
    assert files.claim("t", "b1", REF, made=False) == (REF.filename, True)
    assert files.claim("thief", "b1", REF, made=False) == (REF.filename, False)
    assert files.find("thief", REF) is None
    assert files.claim("twin", "b1", REF) == (REF.filename, True)


def test_a_file_that_was_written_anew_is_its_writers_alone() -> None:
    files = FileIndex()
    for tenant in ("t", "u"):
        files.claim(tenant, "b1", REF)
    assert files.replaced("u", "b1", REF) == [("t", REF)]
    assert files.replaced("u", "b1", REF) == []
    assert (files.find("t", REF), files.find("u", REF)) == (None, Holder("b1", REF.filename))
    assert files.claim("t", "b2", REF) == (REF.filename, True)


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
        name, _ = files.claim(tenant, backend, ref)
        visible = FileRef(kind, subfolder, name)
        assert given_names.setdefault((tenant, visible), (backend, ref)) == (backend, ref)
        assert files.find(tenant, visible) == Holder(backend, filename)


def test_outputs_are_renamed_however_deep() -> None:
    output = {
        "images": [{"filename": "a.png", "subfolder": "", "type": "output"}],
        "gifs": [{"nested": {"list": [{"filename": "b.mp4", "format": "video/mp4"}]}}],
        "text": ["a.png"],
        "animated": [True],
    }
    renamed = rename(output, lambda ref, _: "new-" + ref.filename)
    assert renamed["images"][0]["filename"] == "new-a.png"
    assert renamed["gifs"][0]["nested"]["list"][0] == {"filename": "new-b.mp4", "format": "video/mp4"}
    assert renamed["text"] == ["a.png"]
    assert rename(output, lambda ref, _: ref.filename) is output
