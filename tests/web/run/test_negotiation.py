"""Which output, or JSON, a request gets by its Accept."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.web.run.negotiation import Form, choose

TYPES = ["image/png", "text/plain; charset=utf-8", "image/webp", "video/mp4"]


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        ([], Form.JSON),
        ([""], Form.JSON),
        (["*/*"], Form.JSON),
        (["nonsense"], Form.JSON),
        (["application/json"], Form.JSON),
        (["image/*"], 0),
        (["IMAGE/WebP"], 2),
        (["image/*;q=0.5, image/webp"], 2),
        (["image/png;q=0, image/*"], 2),
        (["video/*", "text/plain;q=0.9"], 3),
        (["text/*"], 1),
        (["image/avif,image/webp,image/apng,image/svg+xml,image/*,*/*;q=0.8"], 0),
        (["text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"], Form.JSON),
        (["application/json, image/*"], 0),
        (["application/json, image/*;q=0.9"], Form.JSON),
        (["*/*, image/*;q=0.1"], Form.JSON),
        (["*/*, application/json;q=0"], 0),
        (["audio/*"], Form.NONE),
        (["image/*;q=0"], Form.NONE),
        (["image/gif"], Form.NONE),
        (["image/*;q=2"], 0),
    ],
)
def test_choices(accept: list[str], chosen: int | Form) -> None:
    assert choose(accept, TYPES) == chosen


@settings(max_examples=50)
@given(st.lists(st.text("imagevdo/*;q=.01, +", max_size=40), max_size=3), st.lists(st.sampled_from(TYPES)))
def test_any_header_has_an_answer(accept: list[str], types: list[str]) -> None:
    chosen = choose(accept, types)
    assert isinstance(chosen, Form) or types.index(types[chosen]) == chosen
