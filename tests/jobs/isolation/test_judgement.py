"""Judging prompts: each kind of input, with literals and with links of every type; classes that nobody has reviewed."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.comfy.class_profiles import ClassProfile, profile_of
from gateway.comfy.node_review import Kind, Review
from gateway.jobs.isolation.judgement import MAX_FORMULAS, MAX_REFUSALS, Judgement, judge


def described(output: list[Any], module: str = "nodes", hidden: Any = None, **inputs: Any) -> dict[str, Any]:
    parts = {"required": inputs} | ({"hidden": hidden} if hidden else {})
    return {"input": parts, "output": output, "python_module": module}


_TEMPLATE = {"template": {"template_id": "t", "allowed_types": "*"}}
_VALUES = {
    "template": {"input": {"required": {"value": ["FLOAT,INT,BOOLEAN", {}]}}, "names": ["a", "b"], "min": 1},
}
_INNER = {"options": [{"key": "h264", "inputs": {"required": {"crf": ["INT", {}]}}}, {"key": "copy", "inputs": {}}]}
_SIZES = {
    "options": [
        {"key": "both", "inputs": {"required": {"width": ["INT", {}], "height": ["INT", {}]}}},
        {"key": "width", "inputs": {"required": {"width": ["INT", {}]}}},
        {"key": "video", "inputs": {"required": {"codec": ["COMFY_DYNAMICCOMBO_V3", _INNER]}}},
        {"key": "none", "inputs": {}},
    ]
}
_SLOT = {"slotType": "IMAGE", "inputs": {"optional": {"scale": ["INT", {}]}}}
CUSTOM = "custom_nodes.some-pack"
INFO = {
    "Text": described(["STRING"], value=["STRING", {}]),
    "Number": described(["INT"], value=["INT", {}]),
    "Image": described(["IMAGE"], width=["INT", {}]),
    "Video": described(["VIDEO"], images=["IMAGE", {}]),
    "Choice": described([["a", "b"]], CUSTOM, one=[["a", "b"], {}]),
    "Switch": described(
        ["COMFY_MATCHTYPE_V3"], a=["COMFY_MATCHTYPE_V3", _TEMPLATE], b=["COMFY_MATCHTYPE_V3", _TEMPLATE]
    )
    | {"output_matchtypes": ["t"]},
    "Show": described([], source=["*", {}]),
    "Save": described([], images=["IMAGE", {}], filename_prefix=["STRING", {}]),
    "Dump": described([], images=["IMAGE", {}], folder_name=["STRING", {}], filename_prefix=["STRING", {}]),
    "Replace": described([], mode=[["overwrite", "increment"], {}]),
    "SaveModel": described([], model=["MODEL", {}], filename_prefix=["STRING", {}]),
    "SaveSteps": described([], steps=["INT", {}]),
    "Load": described(["IMAGE"], image=[["x.png"], {"image_upload": True}]),
    "LoadModel": described(["MODEL"], name=[["m.safetensors"], {}]),
    "Sampler": described(["LATENT"], model=["MODEL", {}], seed=["INT", {}], name=[["euler"], {}]),
    "Format": described(["STRING"], f_string=["STRING", {}], values=["COMFY_AUTOGROW_V3", _VALUES]),
    "Formula": described(["FLOAT"], expression=["STRING", {}], values=["COMFY_AUTOGROW_V3", _VALUES]),
    "Resize": described(
        ["IMAGE"], size=["COMFY_DYNAMICCOMBO_V3", _SIZES], slot=["COMFY_DYNAMICSLOT_V3", _SLOT], image=["IMAGE", {}]
    ),
    "Datasets": described([], folder_name=["STRING", {}]),
    "Newer": described([], text=["STRING", {}], more=["STRING", {}]),
    "Harmless": described(["IMAGE"], CUSTOM, image=["IMAGE", {}], strength=["FLOAT", {}], mode=[["x", "y"], {}]),
    "Named": described(["IMAGE"], CUSTOM, image=["IMAGE", {}], path=["STRING", {}]),
    "Anything": described(["*"], CUSTOM, value=["*", {}]),
    "Told": described(["IMAGE"], CUSTOM, image=["IMAGE", {}], hidden={"prompt": "PROMPT"}),
    "Marked": described(["IMAGE"], CUSTOM, image=["IMAGE", {}], hidden={"me": "UNIQUE_ID"}),
    "ToldV3": described(["IMAGE"], CUSTOM, image=["IMAGE", {}], hidden={"prompt": ["PROMPT"]}),
    "MarkedV3": described(["IMAGE"], CUSTOM, image=["IMAGE", {}], hidden={"unique_id": ["UNIQUE_ID"]}),
    "Folder": described(["IMAGE"], CUSTOM, file=[["a.png", "b.png"], {}]),
    "Flagged": described(["IMAGE"], CUSTOM, file=[["none"], {"image_upload": True}]),
    "Remote": described(["IMAGE"], CUSTOM, file=["COMBO", {"remote": {"route": "/x"}}]),
    "Models": described(["MODEL"], CUSTOM, name=[["a.safetensors", "b.ckpt"], {}]),
    "Odd": described(["IMAGE"], CUSTOM, data=["BLOB", {}]),
}
REVIEW = Review(
    "0",
    {
        "Text": {"value": Kind.TEXT},
        "Number": {},
        "Image": {},
        "Video": {},
        "Switch": {"a": Kind.ANY, "b": Kind.ANY},
        "Show": {"source": Kind.ANY},
        "Save": {"filename_prefix": Kind.OUTPUT_PREFIX},
        "Dump": {"folder_name": Kind.UNCHECKED_FOLDER, "filename_prefix": Kind.UNCHECKED_PREFIX},
        "Replace": {"mode": Kind.REPLACING},
        "SaveModel": {"filename_prefix": Kind.MODEL_PREFIX},
        "SaveSteps": {"steps": Kind.PATH_PART},
        "Load": {"image": Kind.FILE},
        "LoadModel": {"name": Kind.MODEL},
        "Sampler": {},
        "Format": {"f_string": Kind.FORMAT, "values": Kind.ANY, "values.*": Kind.ANY},
        "Formula": {"expression": Kind.EXPRESSION, "values": Kind.NUMBER, "values.*": Kind.NUMBER},
        "Resize": {},
        "Datasets": {"folder_name": Kind.DATASETS},
        "Newer": {"text": Kind.TEXT},
    },
)
PROFILES = {name: profile_of(name, description, REVIEW) for name, description in INFO.items()}

# What a link may come from, by what it carries.
SOURCES: dict[str, dict[str, Any]] = {
    "STRING": {"s": {"class_type": "Text", "inputs": {"value": "x"}}},
    "INT": {"s": {"class_type": "Number", "inputs": {"value": 1}}},
    "IMAGE": {"s": {"class_type": "Image", "inputs": {"width": 8}}},
    "VIDEO": {"s": {"class_type": "Video", "inputs": {"images": ["i", 0]}}, "i": {"class_type": "Image", "inputs": {}}},
}
for _name in list(SOURCES):
    _switch = {"class_type": "Switch", "inputs": {"a": ["q", 0], "b": ["q", 0]}}
    SOURCES[f"switched {_name}"] = {**SOURCES[_name], "q": SOURCES[_name]["s"], "s": _switch}


def judged(prompt: dict[str, Any], *trusted: str) -> Judgement:
    def trusts(profile: ClassProfile) -> bool:
        return "*" in trusted or profile.name in trusted or profile.pack in trusted

    return judge(prompt, PROFILES.get, trusts)


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def passes(class_type: str, name: str, value: Any, *trusted: str) -> bool:
    return not judged({"n": {"class_type": class_type, "inputs": {name: value}}}, *trusted).refusals


def takes(class_type: str, name: str, source: str, *trusted: str) -> bool:
    prompt = {"n": {"class_type": class_type, "inputs": {name: ["s", 0]}}, **SOURCES[source]}
    return all(refusal.node_id != "n" for refusal in judged(prompt, *trusted).refusals)


@pytest.mark.parametrize(
    ("class_type", "name", "value", "is_fine"),
    [
        ("Text", "value", "../any/thing.png [output]", True),
        ("Show", "source", {"any": ["thing"]}, True),
        ("Number", "value", "7", True),
        ("Number", "value", " -1.5e3", True),
        ("Number", "value", "/../7", False),
        ("Number", "value", {"a": "7"}, False),
        ("Number", "value", [1, 2, 3], False),
        ("Sampler", "seed", {"__value__": "../7"}, False),
        ("Image", "width", 8, True),
        ("Video", "images", "a/name.png", False),
        ("Video", "images", {"deep": [{"er": "a/name.png"}]}, False),
        ("Video", "images", 5, True),
        ("Video", "images", None, True),
        ("Save", "filename_prefix", "a/b", True),
        ("Save", "filename_prefix", "../b", False),
        ("Dump", "folder_name", "a", True),
        ("Dump", "folder_name", "../../user", False),
        ("Dump", "folder_name", {"__value__": "../../user"}, False),
        ("Dump", "filename_prefix", "a", True),
        ("Dump", "filename_prefix", "../../user", False),
        ("Replace", "mode", "increment", True),
        ("Replace", "mode", "overwrite", False),
        ("SaveModel", "filename_prefix", "mine/x", True),
        ("SaveModel", "filename_prefix", "loras/x", False),
        ("SaveSteps", "steps", 5, True),
        ("SaveSteps", "steps", "../5", False),
        ("LoadModel", "name", "m.safetensors", True),
        ("LoadModel", "name", "sub/m..v2.safetensors", True),
        ("LoadModel", "name", "../../output", False),
        ("LoadModel", "name", "/etc", False),
        ("LoadModel", "name", "sub\\..\\..\\m", False),
        ("Format", "f_string", "{a}", True),
        ("Format", "f_string", "{a.b}", False),
        ("Format", "f_string", {"__value__": "{a.b}"}, False),
        ("Formula", "expression", "a + 0.5", True),
        ("Formula", "expression", "a.real", False),
        ("Formula", "values.a", 0.5, True),
        ("Formula", "values.a", "text", False),
        ("Formula", "values.a", {"__value__": "text"}, False),
        ("Datasets", "folder_name", "mine", False),
        ("Text", "undeclared", "dropped", True),
        ("Harmless", "undeclared", "dropped?", False),
        ("Harmless", "mode", "x", True),
        ("Harmless", "mode", "z", False),
        ("Harmless", "mode", ["x", "y", "x"], True),
        ("Harmless", "mode", ["x", "../z", "y"], False),
        ("Harmless", "mode", {"__value__": ["x", "../z"]}, False),
        ("Harmless", "mode", {"x": "../z"}, False),
        ("Harmless", "strength", 0.5, True),
        ("Models", "name", "a.safetensors", True),
        ("Models", "name", "../c.safetensors", False),
        ("Odd", "data", "a text", False),
        ("Odd", "data", [1, 2, 3], True),
    ],
)
def test_literals(class_type: str, name: str, value: Any, is_fine: bool) -> None:
    assert passes(class_type, name, value) is is_fine


@pytest.mark.parametrize(
    ("class_type", "name", "fits"),
    [
        ("Text", "value", "STRING INT"),
        ("Show", "source", "STRING INT IMAGE VIDEO"),
        ("Number", "value", "INT"),
        ("Image", "width", "INT"),
        ("Video", "images", "INT IMAGE VIDEO"),
        ("Save", "filename_prefix", "STRING"),
        ("Dump", "folder_name", ""),
        ("Dump", "filename_prefix", ""),
        ("Replace", "mode", ""),
        ("SaveModel", "filename_prefix", ""),
        ("SaveSteps", "steps", "INT"),
        ("Load", "image", ""),
        ("LoadModel", "name", ""),
        ("Sampler", "seed", "INT"),
        ("Sampler", "name", "INT"),
        ("Format", "f_string", ""),
        ("Format", "values.a", "STRING INT IMAGE VIDEO"),
        ("Format", "values.z", ""),
        ("Formula", "expression", ""),
        ("Formula", "values.b", "INT"),
        ("Formula", "values", ""),
        ("Format", "values", ""),
        ("Resize", "size", ""),
        ("Datasets", "folder_name", ""),
        ("Text", "undeclared", ""),
        ("Harmless", "undeclared", ""),
        ("Harmless", "image", "IMAGE"),
        ("Harmless", "strength", "INT"),
        ("Harmless", "mode", "INT"),
    ],
)
@pytest.mark.parametrize("source", SOURCES)
def test_links(class_type: str, name: str, fits: str, source: str) -> None:
    """A link is judged by its true type: through a switch it passes where it would pass without."""
    assert takes(class_type, name, source) is (source.removeprefix("switched ") in fits.split())


@pytest.mark.parametrize(
    ("inputs", "linked", "is_there"),
    [
        ({"size": "both"}, "size.height", True),
        ({"size": "both"}, "size.width", True),
        ({"size": "width"}, "size.width", True),
        ({"size": "width"}, "size.height", False),
        ({"size": "none"}, "size.width", False),
        ({"size": "no option"}, "size.width", False),
        ({"size": {"__value__": "both"}}, "size.width", False),
        ({"size": ["s", 0]}, "size.width", False),
        ({}, "size.width", False),
        ({"size": "video", "size.codec": "h264"}, "size.codec.crf", True),
        ({"size": "video", "size.codec": "copy"}, "size.codec.crf", False),
        ({"size": "both", "size.codec": "h264"}, "size.codec.crf", False),
        ({"size": "video"}, "size.codec", False),
        ({"slot": ["i", 0]}, "slot.scale", True),
        ({}, "slot.scale", False),
    ],
)
def test_a_member_of_an_option_is_linked_only_where_the_option_is_chosen(
    inputs: dict[str, Any], linked: str, is_there: bool
) -> None:
    """ComfyUI runs what is behind any other link without validating it: a number there may be a path.

    Seen on a real one: SaveLoRA.steps, linked to PrimitiveInt with a text, wrote outside of output/.
    """
    prompt = {"n": {"class_type": "Resize", "inputs": {**inputs, linked: ["s", 0]}}, **SOURCES["INT"]}
    assert (linked not in {refusal.input_name for refusal in judged(prompt).refusals}) is is_there


@pytest.mark.parametrize("link", [["s", -1], ["s", True], ["s", 0.0], {"__value__": ["s", 0]}])
def test_links_that_only_comfyui_takes_for_links_are_refused(link: Any) -> None:
    prompt = {"n": node("Show", source=link), **SOURCES["IMAGE"]}
    assert judged(prompt).refusals


def test_a_link_to_nothing_is_refused_where_its_type_counts() -> None:
    assert not passes("Video", "images", ["nobody", 0])


@pytest.mark.parametrize("name", ["Named", "Anything", "Told", "ToldV3", "Folder", "Flagged", "Remote", "Newer"])
def test_a_class_that_may_carry_a_name_or_code_waits_for_the_operator(name: str) -> None:
    refusal = judged({"n": node(name)}).refusals[0]
    assert refusal.input_name is None
    pack = "some-pack" if name != "Newer" else "nodes"
    assert name in refusal.reason
    assert f"'{pack}'" in refusal.reason
    assert "tenants.default.nodes.trust" in refusal.reason
    assert not judged({"n": node(name)}, name).refusals
    assert not judged({"n": node(name)}, pack).refusals
    assert not judged({"n": node(name)}, "*").refusals


@pytest.mark.parametrize("name", ["Harmless", "Models", "Odd", "Choice"])
def test_a_class_that_can_carry_neither_passes(name: str) -> None:
    assert not judged({"n": node(name)}).refusals


def test_what_a_trusted_class_hands_on_fits_where_a_wrong_value_does_no_harm() -> None:
    def takes_anything(class_type: str, name: str) -> bool:
        prompt = {"n": node(class_type, **{name: ["s", 0]}), "s": node("Anything", value="x")}
        return not judged(prompt, "Anything").refusals

    assert takes_anything("Text", "value")
    assert takes_anything("Sampler", "seed")
    assert takes_anything("Video", "images")
    assert not takes_anything("Formula", "values.a")
    assert not takes_anything("SaveSteps", "steps")
    assert not takes_anything("Load", "image")


def test_a_number_that_a_trusted_class_made_up_stays_unknown_behind_a_primitive() -> None:
    prompt = {
        "n": node("Formula", expression="a", **{"values.a": ["p", 0]}),
        "p": node("Number", value=["s", 0]),
        "s": node("Anything", value="x"),
    }
    assert [refusal.node_id for refusal in judged(prompt, "Anything").refusals] == ["n"]


def test_trust_of_everything_refuses_only_what_is_no_link() -> None:
    prompt = {"n": node("Format", f_string="{a.b}"), "m": node("Datasets", folder_name="x")}
    assert not judged(prompt, "*").refusals


def test_a_class_that_nobody_describes_is_told() -> None:
    assert judged({"n": node("Nowhere"), "m": node("Text", value="x")}) == Judgement((), frozenset({"Nowhere"}))


def test_refusals_are_bounded() -> None:
    prompt = {str(n): node("Datasets", folder_name="x") for n in range(5000)}
    assert len(judged(prompt).refusals) == MAX_REFUSALS


@pytest.mark.parametrize("inputs", [None, [], "text", 5])
def test_inputs_that_are_no_object_are_the_backends_to_refuse(inputs: Any) -> None:
    assert not judged({"n": {"class_type": "Text", "inputs": inputs}}).refusals


def test_the_formulas_of_a_prompt_are_bounded_together() -> None:
    """A formula of 2,000 characters takes ten milliseconds to parse, and the gateway serves nobody meanwhile."""
    fine = {str(n): node("Formula", expression="a+" * 499 + "a") for n in range(MAX_FORMULAS // 1_000)}
    assert not judged(fine).refusals
    found = judged({**fine, "z": node("Formula", expression={"__value__": "a+" * 499 + "a"})}).refusals
    assert [refusal.node_id for refusal in found] == ["z"]


def test_a_long_text_is_no_number() -> None:
    assert not passes("Number", "value", " " * 1_000_000 + "1")


@pytest.mark.parametrize(
    ("node_id", "is_fine"),
    [("7", True), ("12:3", True), ("a-b_c", True), ("../7", False), ("a.png", False), ("", False)],
)
def test_an_id_that_may_be_a_name_is_told_to_no_class_that_nobody_reviewed(node_id: str, is_fine: bool) -> None:
    for name in ("Marked", "MarkedV3"):
        assert (not judged({node_id: node(name)}).refusals) is is_fine
    assert not judged({node_id: node("Marked")}, "some-pack").refusals
    assert not judged({node_id: node("Image")}).refusals
