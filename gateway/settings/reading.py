"""Read the configuration from a YAML file, the environment and flags.

Later sources win: built-in defaults, the file, ``COMFYUI_GATEWAY_…`` variables, flags. Every error names the
place in the file, as in ``backends[1].url: …``; `SettingsError` holds all of them, not just the first.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_origin

from pydantic import BaseModel, ValidationError

from gateway.settings.former_names import present_path, with_present_names
from gateway.settings.messages import sentence, suggestion
from gateway.settings.models import Settings
from gateway.settings.yaml_file import YamlProblems, is_text, read_yaml

ENVIRONMENT_PREFIX = "COMFYUI_GATEWAY_"
# No setting: the name under which a flag and a variable add keys to auth.keys.
ADMIN_KEYS = "admin keys"

# A variable in the form of shells, which this file does not take.
_SHELL_VARIABLE = re.compile(r"\$([A-Za-z_][A-Za-z0-9_]*)")
_VARIABLE = re.compile(r"\$(?:\$|\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\})")


class SettingsError(Exception):
    """The configuration can't be used. `problems` holds one ``path: sentence`` line each."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(self.problems))


def load(
    path: Path | None = None,
    *,
    environment: Mapping[str, str] | None = None,
    flags: Mapping[str, Any] | None = None,
) -> Settings:
    """Read the configuration.

    `flags` is a nested mapping as in the file, from the command line. Under `ADMIN_KEYS` it may hold key entries that
    the gateway adds to the file's keys, while `auth.keys` would replace those.

    Raises:
        SettingsError: the file can't be read, or something in it, the environment or the flags is wrong.
    """
    environment = os.environ if environment is None else environment
    raw, former, problems = with_present_names(_read_file(path, environment) if path else {})
    admins: list[dict[str, str]] = []
    variables: dict[tuple[str, ...], str] = {}
    for layer in (_from_environment(environment, problems, variables, former), dict(flags or {})):
        admins = layer.pop(ADMIN_KEYS, admins)
        raw = _merge(raw, layer)
    if problems:
        raise SettingsError(problems)
    if admins:
        raw = _with_admins(raw, admins)
    try:
        return Settings.model_validate(raw).with_former_names(former)
    except ValidationError as error:
        given_by = {path: name for path, name in variables.items() if not _holds(flags or {}, path)}
        raise SettingsError([sentence(detail, given_by) for detail in error.errors()]) from error


def _with_admins(raw: Mapping[str, Any], admins: list[dict[str, str]]) -> dict[str, Any]:
    """Return the settings with admins' keys added to the other keys, because an added key must not lock others out."""
    auth = raw.get("auth")
    if auth is not None and not isinstance(auth, Mapping):
        return dict(raw)
    keys = (auth or {}).get("keys") or []
    return _merge(raw, {"auth": {"keys": [*keys, *admins]}}) if isinstance(keys, list) else dict(raw)


def _read_file(path: Path, environment: Mapping[str, str]) -> dict[str, Any]:
    try:
        document = read_yaml(path)
    except YamlProblems as error:
        raise SettingsError(error.problems) from error
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise SettingsError(
            [f"{path}: must be a mapping of settings, such as 'backends: [{{url: http://127.0.0.1:8188}}]'"]
        )
    problems: list[str] = []
    expanded = _expand(document, environment, "", problems)
    if problems:
        raise SettingsError(problems)
    assert isinstance(expanded, dict)
    return expanded


def _expand(value: Any, environment: Mapping[str, str], path: str, problems: list[str]) -> Any:
    if isinstance(value, dict):
        return {
            key: _expand(item, environment, f"{path}.{key}" if path else str(key), problems)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [_expand(item, environment, f"{path}[{n}]", problems) for n, item in enumerate(value)]
    if not isinstance(value, str):
        return value

    if (shell := _SHELL_VARIABLE.fullmatch(value)) is not None:
        problems.append(
            f"{path}: write ${{{shell[1]}}} with braces for an environment variable, or $$ for a dollar sign"
        )
        return value
    if "${" in _VARIABLE.sub("", value):
        problems.append(f"{path}: ${{…}} takes the name of an environment variable: letters, digits and _; $$ is a '$'")
        return value

    def replace(match: re.Match[str]) -> str:
        name, default = match.group(1), match.group(2)
        if name is None:
            return "$"
        if name in environment:
            if not is_text(environment[name]):
                problems.append(f"{path}: the environment variable {name} is not UTF-8 text")
                return ""
            return environment[name]
        if default is None:
            problems.append(
                f"{path}: the environment variable {name} is not set; set it, or give a default: ${{{name}:-…}}"
            )
        return default or ""

    return _VARIABLE.sub(replace, value)


# The variables that mirror a flag; any other setting is SECTION__NAME, as in COMFYUI_GATEWAY_PROBE__INTERVAL.
_SHORT = {
    "HOST": ("server", "host"),
    "PORT": ("server", "port"),
    "DATA_DIR": ("data_dir",),
    "NO_AUTH": ("auth", "disabled"),
}


def _from_environment(
    environment: Mapping[str, str],
    problems: list[str],
    variables: dict[tuple[str, ...], str],
    former: list[str],
) -> dict[str, Any]:
    """Return the settings that variables give.

    Add to `variables` the variable of each setting, and to `former` a warning for each former name.
    """
    found: dict[str, Any] = {}
    for variable, value in environment.items():
        if not variable.startswith(ENVIRONMENT_PREFIX) or not value:
            continue
        name = variable.removeprefix(ENVIRONMENT_PREFIX)
        if name == "CONFIG":
            continue
        # A folder's name may be any bytes.
        if not is_text(value) and name != "DATA_DIR":
            problems.append(f"{variable}: is not UTF-8 text")
            continue
        if name == "BACKENDS":
            variables["backends",] = variable
            found["backends"] = backends_of(value.split(","))
        elif name == "API_KEYS":
            variables["auth", "keys"] = variable
            found.setdefault("auth", {})["keys"] = keys_of(value.split(","))
        elif name == "ADMIN_KEYS":
            found[ADMIN_KEYS] = admin_keys_of(value.split(","))
        else:
            given = _SHORT.get(name) or tuple(name.lower().split("__"))
            parts = present_path(given)
            if parts != given:
                now = f"{ENVIRONMENT_PREFIX}{'__'.join(parts).upper()}"
                former.append(f"{variable}: this variable is called {now} now; the next release refuses {variable}")
            annotation = _annotation(parts)
            if annotation is None:
                problems.append(f"{variable}: there is no such setting; {_instead(parts)}")
                continue
            is_list = get_origin(annotation) is tuple
            variables[parts] = variable
            listed = [item.strip() for item in value.split(",") if item.strip()]
            found = _merge(found, _nest(parts, listed if is_list else value))
    return found


def _instead(parts: tuple[str, ...]) -> str:
    """Return the advice for a variable whose setting does not exist: the nearest variable, if there is one."""
    for length in range(1, len(parts)):
        if _annotation(parts[:length]) is None:
            parts = parts[:length]
            break
    said = suggestion(parts)
    near = re.fullmatch(r"did you mean ([a-z0-9_.]+)\?", said)
    return f"did you mean {ENVIRONMENT_PREFIX}{near[1].upper().replace('.', '__')}?" if near else said


def _holds(mapping: Mapping[str, Any], path: tuple[str, ...]) -> bool:
    inner: Any = mapping
    for part in path:
        if not isinstance(inner, Mapping) or part not in inner:
            return False
        inner = inner[part]
    return True


def _annotation(parts: tuple[str, ...]) -> Any:
    """Return the type of the setting at a path; None if there is no such setting."""
    model: type[BaseModel] = Settings
    for place, part in enumerate(parts):
        field = model.model_fields.get(part)
        if field is None:
            return None
        if place == len(parts) - 1:
            return field.annotation
        if not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
            return None
        model = field.annotation
    return None


def _nest(parts: tuple[str, ...], value: Any) -> dict[str, Any]:
    for part in reversed(parts):
        value = {part: value}
    assert isinstance(value, dict)
    return value


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        under = merged.get(key)
        merged[key] = _merge(under, value) if isinstance(value, Mapping) and isinstance(under, Mapping) else value
    return merged


def backends_of(urls: Sequence[str]) -> list[dict[str, str]]:
    """Return backend entries for bare URLs; ``host:port`` alone means http."""
    stripped = [url.strip() for url in urls if url.strip()]
    return [{"url": url if "://" in url else f"http://{url}"} for url in stripped]


def keys_of(keys: Sequence[str]) -> list[dict[str, str]]:
    """Return key entries for bare keys. Names come from the keys' digests, so that a key keeps its jobs and files."""
    stripped = [key.strip() for key in keys if key.strip()]
    # Bytes of a flag that are not UTF-8 are refused with the settings.
    digests = [hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest() for key in stripped]
    return [{"name": f"key-{digest[:8]}", "key": key} for digest, key in zip(digests, stripped, strict=True)]


def admin_keys_of(keys: Sequence[str]) -> list[dict[str, str]]:
    """Return key entries for bare keys of admins."""
    return [{**key, "name": key["name"].replace("key-", "admin-", 1), "role": "admin"} for key in keys_of(keys)]
