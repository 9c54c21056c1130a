"""Turn pydantic's errors about a configuration into sentences: the place, the allowed values, an example, the value."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic import BaseModel

from gateway.settings.models import Settings
from gateway.settings.units import Measured, Unit, with_unit

MAX_SHOWN = 60
Location = Sequence[str | int]
_SECRETS = frozenset({"key", "sha256", "password", "bearer", "user", "headers", "command"})
_CREDENTIALS = re.compile(r"//[^/@\s]*@")
# Examples that can't be made from a default: by path, with [] for a place in a list.
_EXAMPLES = {
    "backends": "[{url: http://127.0.0.1:8188}]",
    "backends[]": "{url: http://127.0.0.1:8188}",
    "backends[].url": "http://127.0.0.1:8188",
    "backends[].name": "gpu0",
    "backends[].auth": '{user: gateway, password: "${PASSWORD}"}',
    "backends[].tls": "{ca: /etc/comfyui-gateway/ca.pem}",
    "backends[].labels": "[big, eu]",
    "backends[].labels[]": "big",
    "backends[].tenants": "[anna]",
    "backends[].max_queue": "8",
    "backends[].restart": "{command: [systemctl, restart, comfyui@0]}",
    "backends[].restart.command": "[systemctl, restart, comfyui@0]",
    "backends[].restart.headers": '{Authorization: "Bearer ${TOKEN}"}',
    "auth": "{metrics: key}",
    "auth.keys": '[{name: app, key: "${APP_KEY}"}]',
    "auth.keys[]": '{name: app, key: "${APP_KEY}"}',
    "auth.keys[].name": "app",
    "auth.keys[].tenant": "app",
    "auth.keys[].expires": "2036-12-24",
    "server.tls": "{certificate: /etc/comfyui-gateway/fullchain.pem, key: /etc/comfyui-gateway/key.pem}",
    "server.tls.certificate": "/etc/comfyui-gateway/fullchain.pem",
    "server.tls.key": "/etc/comfyui-gateway/key.pem",
    "server.tls.redirect_port": "80",
    "server.tls.hsts": "365d",
    "server.base_path": "/comfy",
    "server.allowed_hosts": "[comfy.example.com]",
    "server.trusted_proxies": "[10.0.0.0/8]",
    "server.trusted_proxies[]": "10.0.0.0/8",
    "cors.origins": '["https://app.example.com"]',
    "routes.users": '["POST /rgthree"]',
    "routes.admins": '["/browser2"]',
    "tenants.anonymous.networks": "[10.0.0.0/8]",
    "tenants.anonymous.networks[]": "10.0.0.0/8",
    "tenants.named": "{anna: {labels: [big]}}",
    "tenants.default.labels": "[big]",
    "tenants.default.require": '["vram>=24"]',
    "tenants.default.require[]": '"vram>=24"',
    "tenants.default.deadline": "1h",
    "tenants.default.nodes.deny": '["Shell*"]',
    "tenants.default.nodes.trust": '["ComfyUI-Impact-Pack"]',
    "tenants.default.models.deny": '["internal-*"]',
    "tenants.default.limits": "{prompts_per_minute: 60}",
    "tenants.default": "{limits: {prompts_per_minute: 60}}",
    "log.file": "/var/log/comfyui-gateway/gateway.log",
    "log.fleet_status": "1m",
    "dispatch.job_timeout": "30m",
    "dispatch.deadline": "1h",
    "store.retention": "{max_age: 30d}",
}
# Settings of other programs, and the advice for each.
_LOG_FILE = "the setting is log.file: stderr, stdout or the path of a file"
_NO_SETTINGS = dict.fromkeys(("log.to", "log.filename", "log.path", "log.output", "log_file", "logfile"), _LOG_FILE)
_MAX_WHOLE = 10**60
_LISTS = ("list_type", "tuple_type")
_MAPPINGS = ("model_type", "dict_type", "mapping_type", "model_attributes_type")


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting's type, its bounds and marks, and its default."""

    annotation: Any
    marks: tuple[Any, ...]
    default: Any

    @property
    def model(self) -> type[BaseModel] | None:
        """Return the section's model; None if the setting is no section."""
        is_model = isinstance(self.annotation, type) and issubclass(self.annotation, BaseModel)
        return self.annotation if is_model else None

    @property
    def unit(self) -> Unit | None:
        """Return the unit of the setting; None if it has none."""
        return next((mark.unit for mark in self.marks if isinstance(mark, Measured)), None)


def sentence(detail: Mapping[str, Any], variables: Mapping[tuple[str, ...], str]) -> str:
    """Return the sentence for one of pydantic's errors.

    Args:
        detail: an entry of `ValidationError.errors()`.
        variables: the environment variables that gave settings, by the settings' paths.
    """
    where = [part for part in detail["loc"] if part != "[key]"]
    name, kind = written(where), str(detail["type"])
    source = next((variables[path] for path in _prefixes(where) if path in variables), "")
    given_by = f" (from {source})" if source else ""
    if kind == "value_error":
        message = str(detail["msg"]).removeprefix("Value error, ")
        return f"{name}{given_by}: {message}" if name else message
    if kind == "extra_forbidden":
        return f"{name}: there is no such setting; {_instead(where)}"
    if kind == "invalid_key":
        return f"{written(where[:-1]) or 'the file'}: the name of a setting must be a text; found {detail['input']}"
    if kind == "missing":
        example = _EXAMPLES.get(_pattern(where[:-1]), f"{{{where[-1]}: …}}")
        return f"{written(where[:-1])}: {where[-1]} is missing; give it, as in {example}"
    setting = setting_at(where)
    allowed = _allowed(kind, setting, str(detail["msg"]))
    example = _example(where, setting)
    found = _found(detail["input"], where, setting)
    near = _nearest(detail["input"], setting)
    said = f"must be {allowed}{f', such as {example}' if example else ''}; found {found}"
    return f"{name}{given_by}: {said}{near}" if name else f"the settings {said}"


def written(where: Location) -> str:
    """Return a path in the form for messages: ``backends[1].url``."""
    path = ""
    for part in where:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return path


def setting_at(where: Location) -> Setting | None:
    """Return the setting at a path; None if there is none."""
    found = Setting(Settings, (), None)
    for part in where:
        annotation, origin = found.annotation, get_origin(found.annotation)
        if found.model is not None:
            field = found.model.model_fields.get(str(part))
            if field is None:
                return None
            found = _stripped(field.annotation, tuple(field.metadata), field.default)
        elif origin in (tuple, list) and isinstance(part, int):
            found = _stripped(get_args(annotation)[0], (), None)
        elif isinstance(origin, type) and issubclass(origin, Mapping):
            found = _stripped(get_args(annotation)[1], (), None)
        else:
            return None
    return found


def suggestion(where: Sequence[str]) -> str:
    """Return the advice for a setting that does not exist."""
    return _instead(where)


def _stripped(annotation: Any, marks: tuple[Any, ...], default: Any) -> Setting:
    """Take ``Annotated`` and ``| None`` off a type."""
    while True:
        if get_origin(annotation) is Annotated:
            annotation, *more = get_args(annotation)
            marks = (*marks, *more)
        elif get_origin(annotation) in (Union, UnionType):
            annotation = next(arg for arg in get_args(annotation) if arg is not type(None))
        else:
            return Setting(annotation, tuple(_flat(marks)), default)


def _flat(marks: Sequence[Any]) -> Iterator[Any]:
    for mark in marks:
        yield from getattr(mark, "metadata", None) or (mark,)


def _prefixes(where: Location) -> Iterator[tuple[str, ...]]:
    for length in range(len(where), 0, -1):
        yield tuple(map(str, where[:length]))


def _pattern(where: Location) -> str:
    """Return a path with ``[]`` for each place in a list, and ``tenants.default`` for a named tenant."""
    path = re.sub(r"\[\d+\]", "[]", written(where))
    return re.sub(r"^tenants\.named\.[^.]+", "tenants.default", path)


def _allowed(kind: str, setting: Setting | None, message: str) -> str:
    if kind in _LISTS:
        return "a list"
    if kind in _MAPPINGS:
        return "a mapping"
    if setting is None:
        return "a name of letters and digits" if kind == "string_type" else "something else"
    if get_origin(setting.annotation) is Literal:
        return f"one of {', '.join(map(str, get_args(setting.annotation)))}"
    if setting.model is not None or get_origin(setting.annotation) is not None:
        return "a list" if get_origin(setting.annotation) is tuple else "a mapping"
    if setting.annotation in (int, float):
        return _number(setting)
    if setting.annotation is bool:
        return "true or false"
    if setting.annotation is datetime:
        return "a day or a time"
    if setting.annotation is Path:
        return "the path of a file or a folder"
    if "Label" in message or kind == "string_pattern_mismatch":
        return "1 to 32 letters, digits and . _ -, the first a letter or digit"
    if kind in ("string_too_short", "string_too_long"):
        bounds = {type(mark): mark for mark in setting.marks}
        least, maximum = bounds.get(annotated_types.MinLen), bounds.get(annotated_types.MaxLen)
        return f"a text of {least.min_length if least else 0} to {maximum.max_length if maximum else '…'} characters"
    return "a text; quote what YAML would read as a number or as yes or no"


def _number(setting: Setting) -> str:
    unit = setting.unit
    noun = {Unit.SECONDS: "a time", Unit.BYTES: "a size"}.get(unit) if unit else None
    noun = noun or ("a whole number" if setting.annotation is int else "a number")
    bounds = []
    for mark in setting.marks:
        if isinstance(mark, annotated_types.Gt):
            bounds.append(f"above {mark.gt}")
        elif isinstance(mark, annotated_types.Ge):
            bounds.append(f"of at least {with_unit(mark.ge, unit) if mark.ge else 0}")  # type: ignore[arg-type]
        elif isinstance(mark, annotated_types.Le):
            bounds.append(f"{'' if bounds else 'of '}at most {with_unit(mark.le, unit)}")  # type: ignore[arg-type]
    return " ".join([noun, " and ".join(bounds)]).strip()


def _example(where: Location, setting: Setting | None) -> str:
    example = _EXAMPLES.get(_pattern(where))
    if example or setting is None or get_origin(setting.annotation) is Literal or setting.annotation is bool:
        return example or ""
    if setting.model is not None:
        name, field = next(iter(setting.model.model_fields.items()))
        inner = _example([*where, name], _stripped(field.annotation, tuple(field.metadata), field.default))
        return f"{{{name}: {inner or _plain(field.default)}}}"
    if isinstance(setting.default, int | float) and not isinstance(setting.default, bool):
        return with_unit(setting.default, setting.unit)
    if setting.unit is not None:
        return "30s" if setting.unit is Unit.SECONDS else "64MiB"
    return "10" if setting.annotation in (int, float) else ""


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _found(value: Any, where: Location, setting: Setting | None) -> str:
    """Describe the value that was given. A text is shown only where no secret belongs."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return f"{str(value).lower()} (YAML reads yes and on as true, no and off as false)"
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    is_section = setting is None or setting.model is not None or get_origin(setting.annotation) in (tuple, Mapping)
    is_secret = is_section or any(part in _SECRETS or part == "auth" for part in where if isinstance(part, str))
    if is_secret and get_origin(getattr(setting, "annotation", None)) is not Literal and not _is_number(setting):
        return "a text" if isinstance(value, str) else "a number" if isinstance(value, int | float) else "a date"
    if isinstance(value, int) and abs(value) >= _MAX_WHOLE:
        # Python refuses to write an integer of more than 4,300 digits.
        return "a number of far too many digits"
    shown = _CREDENTIALS.sub("//…@", str(value))
    shown = shown if len(shown) <= MAX_SHOWN else f"{shown[:MAX_SHOWN]}…"
    return repr(shown) if isinstance(value, str) else shown


def _is_number(setting: Setting | None) -> bool:
    return setting is not None and setting.annotation in (int, float)


def _nearest(value: Any, setting: Setting | None) -> str:
    if setting is None or get_origin(setting.annotation) is not Literal or not isinstance(value, str):
        return ""
    choices = {str(choice).lower(): str(choice) for choice in get_args(setting.annotation)}
    near = difflib.get_close_matches(value.lower(), choices, 1)
    return f"; did you mean {choices[near[0]]}?" if near else ""


def _instead(where: Location) -> str:
    """Return the advice for an unknown setting: the nearest name, or all names of the section."""
    if (known := _NO_SETTINGS.get(written(where).lower())) is not None:
        return known
    name, section = str(where[-1]), setting_at(where[:-1])
    names = list(section.model.model_fields) if section is not None and section.model is not None else []
    near = difflib.get_close_matches(name.lower(), names, 1)
    if near:
        return f"did you mean {written([*where[:-1], near[0]])}?"
    elsewhere = [path for path in _all_paths() if path[-1] == name]
    if 0 < len(elsewhere) <= 3:
        return f"did you mean {' or '.join(map(written, elsewhere))}?"
    return f"{written(where[:-1]) or 'the file'} takes {', '.join(sorted(names))}"


def _all_paths(model: type[BaseModel] = Settings, within: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, field in model.model_fields.items():
        yield (*within, name)
        inner = _stripped(field.annotation, (), None).model
        if inner is not None:
            yield from _all_paths(inner, (*within, name))
