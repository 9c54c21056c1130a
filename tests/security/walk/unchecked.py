"""A gateway that lets isolated tenants name any file and folder: secret folders alone keep theirs apart.

``python -m tests.security.walk.unchecked serve …``. Rules for code and for where savers write hold as ever.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from gateway.comfy.graph import FileInput
from gateway.comfy.node_review import OPENING
from gateway.jobs.files import inputs
from gateway.jobs.isolation import judgement


def switch_off() -> None:
    """Let names pass. For this process alone: no setting does it."""
    wrong_literal, wrong_link = judgement._wrong_literal, judgement._wrong_link

    def literal(known: Any, value: Any, profile: Any) -> str | None:
        return None if known is not None and known.kind in OPENING else wrong_literal(known, value, profile)

    def link(known: Any, *rest: Any) -> str | None:
        return None if known is not None and known.kind in OPENING else wrong_link(known, *rest)

    def foreign(self: inputs.Inputs, tenant: str, files: Collection[FileInput]) -> list[FileInput]:
        return []

    async def refuse_foreign(self: inputs.Inputs, job: Any, backend: Any) -> None:
        return None

    judgement._wrong_literal = literal
    judgement._wrong_link = link
    inputs.Inputs.foreign = foreign  # type: ignore[method-assign]
    inputs.Inputs._refuse_foreign = refuse_foreign  # type: ignore[method-assign]


if __name__ == "__main__":
    from gateway.cli.main import main

    switch_off()
    main()
