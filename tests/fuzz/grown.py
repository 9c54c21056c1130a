"""JSON that looks like ComfyUI's, grown from a fuzzer's bytes: raw bytes alone hardly ever become a whole graph."""

from __future__ import annotations

from typing import Any

WORDS = (
    "prompt prompt_id client_id extra_data number front partial_execution_targets class_type inputs _meta title "
    "extra_pnginfo workflow id nodes create_time deadline_seconds api_key_comfy_org auth_token_comfy_org "
    "type data node node_id node_type display_node output outputs status status_str completed messages meta executed "
    "filename subfolder images gifs text animated result value max preview_method error node_errors details message "
    "execution_start execution_success execution_error execution_interrupted execution_cached executing progress "
    "progress_state exception_message exception_type timestamp traceback sid image_type image __value__ "
    "1 2 3 LoadImage SaveImage KSampler CheckpointLoaderSimple SlowSampler ckpt_name seed steps cfg width samples"
).split()
TEXTS = (
    "",
    "a.png",
    "../../etc/passwd",
    "/etc/passwd",
    "x/../y.png [output]",
    "a.png [temp]",
    "b\\c.png",
    "m.safetensors",
    "dir/m.safetensors",
    "temp/a.glb",
    "\x00",
    "\ud800",
    "é.png",
    "output",
    "input",
    "error",
    "success",
    "CUDA error: unknown error",
    "11111111-2222-4333-8444-555555555555",
    "none",
    "https://127.0.0.1/",
    "./" * 40 + "z.png",
)
NUMBERS = (
    0,
    1,
    -1,
    2**31,
    2**53,
    2**63,
    2**64,
    10**40,
    0.5,
    1e308,
    float("nan"),
    float("inf"),
    -0.0,
    True,
    False,
    None,
)
MAX_DEPTH = 12
_MAX_ITEMS = 6


class Grown:
    """Reads bytes as choices; when they run out, the value ends."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._place = 0

    def byte(self) -> int:
        """The next choice; 0 at the end."""
        if self._place >= len(self._data):
            return 0
        self._place += 1
        return self._data[self._place - 1]

    def rest(self) -> bytes:
        """All that has not been read."""
        return self._data[self._place :]

    def text(self) -> str:
        """A word of ComfyUI's, a nasty text, or any text."""
        kind = self.byte()
        if kind < 128:
            return WORDS[self.byte() % len(WORDS)]
        if kind < 224:
            return TEXTS[self.byte() % len(TEXTS)]
        length = self.byte() % 32
        taken = bytes(self.byte() for _ in range(length))
        return taken.decode("utf-8", "replace") if kind >= 232 else taken.decode("latin-1")

    def value(self, depth: int = 0) -> Any:
        """Any JSON value."""
        kind = self.byte() % 8
        if kind == 0 or depth > MAX_DEPTH:
            return NUMBERS[self.byte() % len(NUMBERS)]
        if kind <= 2:
            return self.text()
        if kind == 3:
            return [self.text(), self.byte() % 4]
        count = self.byte() % _MAX_ITEMS
        if kind <= 5:
            return [self.value(depth + 1) for _ in range(count)]
        return {self.text(): self.value(depth + 1) for _ in range(count)}

    def put_into(self, value: Any) -> Any:
        """A copy of a well-formed value in which a few places say something else."""
        for _ in range(1 + self.byte() % 3):
            value = self._changed(value)
        return value

    def _changed(self, value: Any) -> Any:
        if isinstance(value, dict) and value and self.byte() % 8:
            keys = list(value)
            key = keys[self.byte() % len(keys)]
            return {**value, key: self._changed(value[key])}
        if isinstance(value, list) and value and self.byte() % 8:
            place = self.byte() % len(value)
            return [*value[:place], self._changed(value[place]), *value[place + 1 :]]
        return self.value(MAX_DEPTH - 4)
