"""Headers of a request that say how its prompt is to run, whatever its route."""

from __future__ import annotations

from dataclasses import replace

from aiohttp import web

from gateway.jobs.state.prompt_requirement import HEADER as REQUIRE_HEADER
from gateway.jobs.state.prompt_requirement import requirement_of_header
from gateway.jobs.state.submission import Submission


def with_requirement(request: web.Request, submission: Submission) -> Submission:
    """Return a submission with the conditions of the request's header added to its own.

    Raises:
        Rejection: the header is malformed.
    """
    given = request.headers.getall(REQUIRE_HEADER, ())
    if not given:
        return submission
    return replace(submission, require=(*submission.require, *requirement_of_header(",".join(given))))
