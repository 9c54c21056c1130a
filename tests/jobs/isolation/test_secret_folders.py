"""Savers write below their secret folder alone: whatever a prefix says, given as it is, linked or left out."""

from __future__ import annotations

import copy
import ntpath
import posixpath
import re
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.comfy import json_codec
from gateway.comfy.class_profiles import ClassProfile, profile_of
from gateway.comfy.node_review import Kind, Review
from gateway.comfy.subgraph import digests
from gateway.jobs.isolation.secret_folders import (
    INSTEAD,
    LEADS_OUT,
    UNCHANGED,
    UNNAMED,
    Plan,
    Steering,
    plan,
    spliced,
    steer,
)
from gateway.tenants.secret_names import KEY_SIZE, SecretNames

CUSTOM = "custom_nodes.some-pack"
TEXT = ["STRING", {}]
DEFAULT = ["STRING", {"default": "my/pic"}]


def described(module: str, optional: dict[str, Any] | None = None, **required: Any) -> dict[str, Any]:
    return {"input": {"required": required, "optional": optional or {}}, "output": ["STRING"], "python_module": module}


OPTIONS = [{"key": "file", "inputs": {"optional": {"filename_prefix": DEFAULT}}}, {"key": "none", "inputs": {}}]
INFO = {
    "Save": described("nodes", images=["IMAGE", {}], filename_prefix=DEFAULT),
    "SaveWeights": described("nodes", model=["MODEL", {}], prefix=TEXT),
    "Dump": described("nodes", folder_name=TEXT, filename_prefix=TEXT),
    "Ignores": described("nodes", filename_prefix=TEXT),
    "Custom": described(CUSTOM, {"filename_prefix": DEFAULT}, images=["IMAGE", {}], path=TEXT),
    "Dynamic": described(CUSTOM, way=["COMFY_DYNAMICCOMBO_V3", {"options": OPTIONS}]),
    "Image": described("nodes", width=["INT", {}]),
    "Text": described("nodes", value=TEXT),
}
REVIEW = Review(
    "0",
    {
        "Save": {"filename_prefix": Kind.OUTPUT_PREFIX},
        "SaveWeights": {"prefix": Kind.MODEL_PREFIX},
        "Dump": {"folder_name": Kind.UNCHECKED_FOLDER, "filename_prefix": Kind.UNCHECKED_PREFIX},
        "Ignores": {"filename_prefix": Kind.TEXT},
        "Image": {},
        "Text": {"value": Kind.TEXT},
    },
)
PROFILES = {name: profile_of(name, description, REVIEW) for name, description in INFO.items()}
STRING_NODES = frozenset({"RegexReplace", "StringConcatenate"})
NAMES = SecretNames(bytes(KEY_SIZE))

# Texts that are likely to lead out of a folder, and any others.
_PIECES = st.sampled_from(
    ["..", ".", "/", "\\", " ", "a", "b.c", "C:", "d:x", "%year%", "\0", "\n", "...", "//", "\\\\host\\", "~", "CON"]
)
_PREFIXES = st.lists(_PIECES, max_size=8).map("".join) | st.text(st.characters(exclude_categories=()), max_size=10)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | _PREFIXES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)


def planned(prompt: dict[str, Any], classes: frozenset[str] = STRING_NODES) -> Plan:
    savers: dict[str, ClassProfile] = {}
    for node_id, each in prompt.items():
        class_type = each.get("class_type")
        profile = PROFILES.get(class_type) if isinstance(class_type, str) else None
        if profile is not None and profile.savers:
            savers[node_id] = profile
    return plan(prompt, savers, classes.__contains__)


def steered(prompt: dict[str, Any], tenant: str = "anna", classes: frozenset[str] = STRING_NODES) -> Steering:
    before = copy.deepcopy(prompt)
    made = steer(
        prompt,
        planned(prompt, classes),
        NAMES.output_folders(tenant),
        lambda digest, role: NAMES.added_node(tenant, digest, role),
    )
    assert prompt == before or "nan" in str(prompt)
    return made


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def save(prefix: Any, **more: Any) -> dict[str, Any]:
    return node("Save", images=["i", 0], filename_prefix=prefix, **more)


IMAGE = node("Image", width=8)


def below(path: ModuleType, root: str, prefix: str) -> str:
    """Return the file that ComfyUI writes for a prefix, below its output folder (get_save_image_path and SaveImage)."""
    normal = path.normpath(prefix)
    file = path.join(path.join(root, path.dirname(normal)), f"{path.basename(normal)}_00001_.png")
    whole = path.normpath(file)
    assert whole.startswith(path.normpath(root) + path.sep), whole
    return str(whole[len(path.normpath(root)) + 1 :]).replace("\\", "/")


def assert_inside(prefix: str, folder: str) -> None:
    assert "\0" not in prefix
    for path, root in ((posixpath, "/data/output"), (ntpath, "C:\\data\\output")):
        assert below(path, root, prefix).startswith(f"{folder}/"), (prefix, path.__name__)


@pytest.mark.parametrize(
    ("prefix", "true"),
    [
        ("ComfyUI", "ComfyUI"),
        ("a/b", "a/b"),
        ("a/../b", "b"),
        ("./b", "b"),
        ("a//b", "a/b"),
        ("a/", "a"),
        ("a/.", "a"),
        ("a\\b", "a/b"),
        ("a\\..\\b\\", "b"),
        ("%year%/x", "%year%/x"),
        ("x%batch_num%", "x%batch_num%"),
        ("%date:hh:mm%/..x", "%date:hh:mm%/..x"),
        ("a.", "a."),
        (" a ", " a "),
        (5, "5"),
        (5.0, "5.0"),
        (1e30, "1e+30"),
        (True, "True"),
        (None, "None"),
        ({"__value__": "a/b"}, "a/b"),
        ({"__value__": 5}, "5"),
        ({"__value__": ["t", 0]}, "['t', 0]"),
        ({"a": 1}, "{'a': 1}"),
        # ComfyUI writes "._00001_.png".
        ("", UNNAMED),
        (".", UNNAMED),
        ("./", UNNAMED),
        ("a/..", UNNAMED),
        ({"__value__": ""}, UNNAMED),
        # These are refused before, so the name is nobody's wish.
        ("/a", "ComfyUI"),
        ("//host/a", "ComfyUI"),
        ("\\\\host\\a", "ComfyUI"),
        ("C:a", "ComfyUI"),
        ("c:\\a", "ComfyUI"),
        ("a/D:x", "ComfyUI"),
        ("a/1:x", "ComfyUI"),
        (f"o/{'0f' * 16}/f/deep/pic", "deep/pic"),
        (f"o/{'0f' * 16}/f/o/{'1e' * 16}/f/pic", "pic"),
        ({"/": None}, "ComfyUI"),
        ("..", "ComfyUI"),
        ("../a", "ComfyUI"),
        ("a/../../b", "ComfyUI"),
        ("..\\a", "ComfyUI"),
        ("a/.. /b", "ComfyUI"),
        ("...", "ComfyUI"),
        ("a\0b", "ComfyUI"),
    ],
)
def test_a_literal_prefix_gets_its_folder(prefix: Any, true: str) -> None:
    made = steered({"1": save(prefix), "i": IMAGE})
    (folder,) = made.folders
    assert made.changed == {("1", "filename_prefix"): f"{folder}/{true}"}
    assert made.folders == {folder: "1"}
    assert made.added == {}
    assert re.fullmatch("o/[0-9a-f]{32}/f", folder)


@given(_JSON)
def test_no_literal_leads_out_of_its_folder(prefix: Any) -> None:
    made = steered({"1": save(prefix), "i": IMAGE})
    if isinstance(prefix, list):
        return
    (folder,) = made.folders
    assert_inside(made.changed["1", "filename_prefix"], folder)


@pytest.mark.parametrize("value", [[], ["1"], [1, 0], ["t", "0"], ["t", 0, 0], [["t", 0], 0], ["t", None]])
def test_a_list_that_is_no_link_is_refused(value: list[Any]) -> None:
    prompt = {"1": save(value), "i": IMAGE}
    assert planned(prompt).refused == (("1", "filename_prefix"),)
    assert steered(prompt) is UNCHANGED


@pytest.mark.parametrize(
    ("class_type", "inputs", "name", "true"),
    [
        ("SaveWeights", {"prefix": "loras/x"}, "prefix", "loras/x"),
        ("Dump", {"folder_name": "data/set", "filename_prefix": "a"}, "folder_name", "data/set"),
        ("Custom", {"filename_prefix": "x", "path": "/etc"}, "filename_prefix", "x"),
        ("Custom", {"filename_prefix": "/etc/x"}, "filename_prefix", "ComfyUI"),
        # Nothing is written where the default says, in the root of output/.
        ("Custom", {}, "filename_prefix", "my/pic"),
        ("Dynamic", {"way": "file", "way.filename_prefix": "x"}, "way.filename_prefix", "x"),
        ("Dynamic", {"way": "file"}, "way.filename_prefix", "my/pic"),
    ],
)
def test_the_input_that_decides_is_steered_alone(class_type: str, inputs: Any, name: str, true: str) -> None:
    made = steered({"1": node(class_type, **inputs)})
    assert made.changed == {("1", name): f"{next(iter(made.folders))}/{true}"}


@pytest.mark.parametrize(
    "each",
    [
        node("Ignores", filename_prefix="x"),
        node("Unknown", filename_prefix="x"),
        # ComfyUI refuses a node without a required input.
        node("Save", images=["i", 0]),
        node("Dump", filename_prefix="x"),
        node("Dynamic", way="none"),
        {"class_type": "Save", "inputs": None},
        {"class_type": ["Save"], "inputs": {"filename_prefix": "x"}},
        {},
    ],
)
def test_nothing_else_is_changed(each: dict[str, Any]) -> None:
    prompt = {"1": each, "i": IMAGE}
    made = steered(prompt)
    assert planned(prompt) == Plan()
    assert made is UNCHANGED
    assert made.applied(prompt) is prompt


def linked(prefix: str) -> dict[str, Any]:
    return {"1": save(["t", 0]), "i": IMAGE, "t": node("Text", value=prefix)}


def run(prompt: Any, link: list[Any]) -> str:
    """Return what a link of texts carries, as the stock classes make it (comfy_extras/nodes_string.py)."""
    source = prompt[link[0]]
    inputs = source["inputs"]
    match source["class_type"]:
        case "RegexReplace":
            assert set(inputs) == {"string", "regex_pattern", "replace"}
            return re.sub(inputs["regex_pattern"], inputs["replace"], run(prompt, inputs["string"]), flags=re.I)
        case "StringConcatenate":
            assert set(inputs) == {"string_a", "string_b", "delimiter"}
            return str(inputs["delimiter"].join((inputs["string_a"], run(prompt, inputs["string_b"]))))
        case _:
            return str(inputs["value"])


def test_a_linked_prefix_goes_through_added_nodes() -> None:
    prompt = linked("my/../../pre%year%")
    made = steered(prompt)
    (folder,) = made.folders
    link = made.changed["1", "filename_prefix"]
    assert {each["class_type"] for each in made.added.values()} == STRING_NODES
    assert all(re.fullmatch("g[0-9a-f]{24}", node_id) for node_id in made.added)
    after = made.applied(prompt)
    assert run(after, link) == f"{folder}/my/__/__/pre%year%"
    assert set(after) == set(prompt) | set(made.added)
    assert after["t"] is prompt["t"]
    assert after["1"] == save(link)


@pytest.mark.parametrize(
    ("text", "true"),
    [
        ("ComfyUI", "ComfyUI"),
        ("a/b", "a/b"),
        ("v1.5/x.y", "v1.5/x.y"),
        ("a.", "a."),
        ("", "__"),
        (".", "__"),
        ("/", "/__"),
        ("a/", "a/__"),
        ("a/.", "a/__"),
        ("a\\", "a\\__"),
        ("..", "__"),
        ("../..", "__/__"),
        ("...", "__."),
        ("a...b", "a__.b"),
        ("./.", "./__"),
        ("C:x", "__x"),
        ("a\\d:x", "a\\__x"),
        ("a:b", "__b"),
        ("ab:c", "ab:c"),
        (".\n", ".\n"),
        ("a/\n", "a/\n"),
    ],
)
def test_a_linked_text_loses_what_leads_out(text: str, true: str) -> None:
    assert re.sub(LEADS_OUT, INSTEAD, text, flags=re.IGNORECASE) == true


@given(_PREFIXES)
def test_no_linked_text_leads_out_of_its_folder(text: str) -> None:
    prompt = linked(text.replace("\0", ""))
    made = steered(prompt)
    (folder,) = made.folders
    prefix = run(made.applied(prompt), made.changed["1", "filename_prefix"])
    assert_inside(prefix, folder)
    # Else get_save_image_path finds none of the files that are there, and counts from one.
    assert posixpath.basename(prefix) == posixpath.basename(posixpath.normpath(prefix))


@pytest.mark.parametrize("classes", [frozenset[str](), *(STRING_NODES - {one} for one in sorted(STRING_NODES))])
def test_a_linked_prefix_is_refused_where_the_string_nodes_are_missing(classes: frozenset[str]) -> None:
    prompt = {**linked("x"), "2": save("y")}
    made = steered(prompt, classes=classes)
    assert planned(prompt, classes).refused == (("1", "filename_prefix"),)
    assert made.added == {}
    assert [*made.folders.values()] == ["2"]
    assert [*made.changed] == [("2", "filename_prefix")]


def test_equal_savers_with_one_link_share_the_added_nodes() -> None:
    prompt = linked("x") | {"2": save(["t", 0]), "3": save(["t", 0], more=1), "4": save(["u", 0])}
    prompt["u"] = prompt["t"]
    made = steered(prompt)
    links = {node_id: made.changed[node_id, "filename_prefix"] for node_id in "1234"}
    assert links["1"] == links["2"]
    assert links["3"] != links["1"]
    # An equal source may say something else, so the saver keeps its own.
    assert links["4"] != links["1"]
    assert len(made.added) == 6
    assert [*made.folders.values()] == ["1", "3"]
    after = made.applied(prompt)
    assert run(after, links["1"]) == run(after, links["4"])
    assert [each["inputs"]["string"][0] for each in made.added.values() if "string" in each["inputs"]] == list("ttu")


def test_an_added_node_takes_no_id_of_the_clients() -> None:
    """A file of an earlier prompt tells its owner the ids of the nodes that were added to that prompt."""
    prompt = linked("x")
    for _ in range(3):
        made = steered(prompt)
        assert not made.added.keys() & prompt.keys()
        assert len(made.added) == 2
        prompt |= {node_id: node("Text", value="../../x") for node_id in made.added}
    assert run(made.applied(prompt), made.changed["1", "filename_prefix"]).endswith("/f/x")


def test_many_savers_take_no_longer_than_they_are_many() -> None:
    prompt: dict[str, Any] = {"i": IMAGE}
    for place in range(5_000):
        prompt[f"t{place}"] = node("Text", value="x")
        prompt[f"s{place}"] = save([f"t{place}", 0])
    asked = 0

    def node_id_of(digest: bytes, role: str) -> str:
        nonlocal asked
        asked += 1
        return NAMES.added_node("anna", digest, role)

    made = steer(prompt, planned(prompt), NAMES.output_folders("anna"), node_id_of)
    assert asked == len(made.added) == 10_000
    assert [*made.folders.values()] == ["s0"]


@pytest.mark.parametrize("prompt", [{"1": save("x"), "i": IMAGE}, linked("x")])
def test_names_follow_the_tenant_and_the_graph_alone(prompt: dict[str, Any]) -> None:
    def names(prompt: dict[str, Any], tenant: str = "anna") -> tuple[set[str], set[str]]:
        made = steered(prompt, tenant)
        return set(made.folders), set(made.added)

    assert names(prompt) == names({key: dict(reversed(each.items())) for key, each in reversed(prompt.items())})
    other = copy.deepcopy(prompt)
    other["i"]["inputs"]["width"] = 9
    for changed in (names(other), names(prompt, "ben")):
        assert not changed[0] & names(prompt)[0]
        assert not changed[1] & names(prompt)[1]


def test_the_folder_is_that_of_the_clients_own_graph() -> None:
    prompt: dict[str, Any] = {"1": save("a/../b"), "2": save("b"), "3": node("Custom"), "i": IMAGE}
    expected = {node_id: NAMES.output_folders("anna")(each) for node_id, each in digests(prompt, "123").items()}
    assert steered(prompt).folders == {folder: node_id for node_id, folder in expected.items()}


def test_another_tenants_folder_as_a_prefix_leads_nowhere() -> None:
    secret = NAMES.output_folders("anna")(b"x")
    made = steered({"1": save(f"{secret}/pic"), "i": IMAGE}, "ben")
    (folder,) = made.folders
    assert made.changed["1", "filename_prefix"] == f"{folder}/pic"
    assert folder != secret


@pytest.mark.parametrize(
    "prompt",
    [
        {"1": save("pic"), "2": save('a "quoted" \\ name'), "i": IMAGE},
        {"1": save("pic"), "i": IMAGE, "t": {"class_type": "Text", "inputs": {"value": '"filename_prefix":"pic"'}}},
        {"1": save("üñ"), "i": IMAGE},
    ],
)
def test_texts_are_put_in_without_parsing_the_prompt(prompt: dict[str, Any]) -> None:
    made = steered(prompt)
    assert spliced(json_codec.dumps(prompt), made) == json_codec.dumps(made.applied(prompt))


@pytest.mark.parametrize(
    "prompt",
    [
        {"1": save("pic"), "i": IMAGE, "x": {"class_type": "Text", "inputs": {"value": {"filename_prefix": "pic"}}}},
        {"1": {**save("pic"), "_meta": {"filename_prefix": "x"}}, "i": IMAGE},
        {"1": save("pic"), "2": save(5), "i": IMAGE},
        {"1": save("pic"), "2": save({"__value__": "pic"}), "i": IMAGE},
        {"i": IMAGE},
    ],
)
def test_a_prompt_that_may_be_read_otherwise_is_parsed(prompt: dict[str, Any]) -> None:
    assert spliced(json_codec.dumps(prompt), steered(prompt)) is None


@given(st.lists(st.text(max_size=20), min_size=1, max_size=4))
def test_what_is_put_in_is_what_a_parser_would_put_in(prefixes: list[str]) -> None:
    prompt = {"i": IMAGE, **{str(n): save(prefix) for n, prefix in enumerate(prefixes)}}
    made = steered(prompt)
    done = spliced(json_codec.dumps(prompt), made)
    assert done is None or json_codec.loads(done) == made.applied(prompt)
