"""GET /api/jobs: which jobs a query finds, in which order and in which page."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.comfy import json_codec
from gateway.comfy.jobs_api import (
    MAX_WORKFLOW_ID,
    STATUSES,
    JobsQuery,
    encoded_workflow_id,
    job_of_history,
    job_of_queue_item,
    list_jobs,
)
from gateway.jobs.state.history import History
from gateway.store.protocol import HistoryRecord
from gateway.web.routes.jobs import encoded_list

WORKFLOWS = ("a", "b", '"', "\xfc\u2028", "1", "null")
TIMES = st.integers(0, 3)
JOBS = st.fixed_dictionaries(
    {"status": st.sampled_from(STATUSES), "create_time": TIMES},
    optional={
        "execution_start_time": TIMES,
        "execution_end_time": TIMES,
        "workflow_id": st.sampled_from([*WORKFLOWS, 1, 1.5, True, ["a"], {"a": None}, 2**70]),
    },
)
QUERIES = st.builds(
    JobsQuery,
    statuses=st.lists(st.sampled_from(STATUSES), min_size=1).map(tuple),
    workflow_id=st.sampled_from([None, *WORKFLOWS]),
    sort_by=st.sampled_from(["created_at", "execution_duration"]),
    descending=st.booleans(),
    limit=st.none() | st.integers(1, 6),
    offset=st.integers(0, 6),
)


def plain(jobs: list[dict[str, Any]], query: JobsQuery) -> dict[str, Any]:
    """What comfy_execution/jobs.py does, with whole jobs."""

    def duration(job: dict[str, Any]) -> int:
        start, end = job.get("execution_start_time", 0), job.get("execution_end_time", 0)
        return int(end - start) if start and end else 0

    found = [job for job in jobs if job["status"] in query.statuses]
    if query.workflow_id:
        found = [job for job in found if job.get("workflow_id") == query.workflow_id]
    key = duration if query.sort_by == "execution_duration" else lambda job: job.get("create_time", 0)
    found.sort(key=key, reverse=query.descending)
    page = found[query.offset :]
    page = page if query.limit is None else page[: query.limit]
    has_more = query.offset + len(page) < len(found)
    pagination = {"offset": query.offset, "limit": query.limit, "total": len(found), "has_more": has_more}
    return {"jobs": page, "pagination": pagination}


@given(st.lists(JOBS, max_size=12), QUERIES, st.sets(st.integers(0, 11)))
def test_as_with_whole_jobs(values: list[dict[str, Any]], query: JobsQuery, removed: set[int]) -> None:
    """However they are kept: as they are, and encoded in a history from which some go again."""
    jobs = [{"id": str(n), **job} for n, job in enumerate(values)]
    assert list_jobs(jobs, query) == plain(jobs, query)
    history = History(None, 100, 1_000_000)  # type: ignore[arg-type]
    for n, job in enumerate(jobs):
        record = HistoryRecord("t", job["id"], "b", job["id"], n, job["status"], None, None, json_codec.dumps(job))
        if n % 2:
            history.restore(record)
        else:
            history.add(record)
        # Read before others come and go, and after.
        assert len(list(history.listed(["t"]))) == n + 1
    for n in removed:
        history.remove("t", str(n))
    left = [job for n, job in enumerate(jobs) if n not in removed]
    encoded = b"".join(encoded_list(list(history.listed(["t"])), query, tells_whose=False))
    assert json_codec.loads(encoded) == plain(left, query)
    told = b"".join(encoded_list(list(history.listed(None)), query, tells_whose=True))
    owner = {"gateway_tenant": "t", "gateway_backend": "b"}
    assert json_codec.loads(told) == plain([{**job, **owner} for job in left], query)


@pytest.mark.parametrize("told", ["", "x" * MAX_WORKFLOW_ID, 7, 1.5, True])
def test_a_workflows_id_is_told(told: Any) -> None:
    extra_data = {"extra_pnginfo": {"workflow": {"id": told}}}
    assert job_of_queue_item([0, "p", {}, extra_data], "pending")["workflow_id"] == told
    assert encoded_workflow_id(extra_data) == json_codec.dumps(told)


@pytest.mark.parametrize("hidden", [None, "x" * (MAX_WORKFLOW_ID + 1), ["a"], {"a": 1}])
def test_what_is_no_id_or_a_long_one_is_not_told(hidden: Any) -> None:
    """Lists of jobs would repeat it."""
    extra_data = {"extra_pnginfo": {"workflow": {"id": hidden}}}
    entry = {"prompt": [0, "p", {}, extra_data, []], "status": None, "outputs": {}}
    assert "workflow_id" not in job_of_queue_item([0, "p", {}, extra_data], "pending")
    assert "workflow_id" not in job_of_history("p", entry, include_outputs=False)
    assert encoded_workflow_id(extra_data) is None
