"""The shapes of /api/jobs, from queue items and history entries. Pure.

Facts from comfy_execution/jobs.py and server.py (get_jobs). A queue item is ``[number, prompt_id, prompt, extra_data,
outputs_to_execute]``; what is None is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from gateway.comfy import json_codec
from gateway.comfy.events import END_OF_TIME
from gateway.comfy.history import messages_of

STATUSES = ("pending", "in_progress", "completed", "failed", "cancelled")
_ENDS = ("execution_success", "execution_error", "execution_interrupted")
_PREVIEWABLE = frozenset({"images", "video", "audio", "3d", "text"})
_3D = (".obj", ".fbx", ".gltf", ".glb", ".usdz")
_TEXT = (".txt", ".md", ".json")
_MAX_TEXT = 1024
# Of outputs that can be shown the one of the lowest rank is (see `_rank`): that of a text that is no file.
_TEXT_ALONE = 3
# Characters of a workflow's id. Web UIs give a UUID; a longer one is not told.
MAX_WORKFLOW_ID = 1024
T = TypeVar("T")


def job_of_queue_item(item: Sequence[Any], status: str) -> dict[str, Any]:
    """Return the job of a queue item; `status` is ``pending`` or ``in_progress``."""
    number, prompt_id, _, extra_data = item[:4]
    return _pruned(
        {
            "id": prompt_id,
            "status": status,
            "priority": number,
            "create_time": extra_data.get("create_time"),
            "outputs_count": 0,
            "previewable_outputs_count": 0,
            "workflow_id": _workflow_id(extra_data),
        }
    )


def job_of_history(prompt_id: str, entry: Mapping[str, Any], *, include_outputs: bool) -> dict[str, Any]:
    """Return the job of a history entry; with its outputs, status and workflow if asked for."""
    number, _, prompt, extra_data, _ = entry["prompt"]
    status, outputs = _object(entry.get("status")), _object(entry.get("outputs"))
    times = _Times(messages_of(status))
    count, previewable, preview = _counted(outputs)
    job = _pruned(
        {
            "id": prompt_id,
            "status": _status(status, times),
            "priority": number,
            "create_time": extra_data.get("create_time"),
            "execution_start_time": times.start,
            "execution_end_time": times.end,
            "execution_error": times.error,
            "outputs_count": count,
            "previewable_outputs_count": previewable,
            "preview_output": preview,
            "workflow_id": _workflow_id(extra_data),
        }
    )
    if include_outputs:
        job["outputs"] = _normalized(outputs)
        job["execution_status"] = entry.get("status")
        job["workflow"] = {"prompt": prompt, "extra_data": extra_data}
    return job


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


class _Times:
    def __init__(self, messages: Sequence[tuple[str, dict[str, Any]]]) -> None:
        self.start: Any = None
        self.end: Any = None
        self.error: Any = None
        self.interrupted = False
        for name, data in messages:
            if name == "execution_start":
                self.start = data.get("timestamp")
            elif name in _ENDS:
                self.end = data.get("timestamp")
                self.error = data if name == "execution_error" else self.error
                self.interrupted = self.interrupted or name == "execution_interrupted"


def _status(status: Mapping[str, Any], times: _Times) -> str:
    if status.get("status_str") != "error":
        return "completed"
    return "cancelled" if times.interrupted else "failed"


def _workflow_id(extra_data: Mapping[str, Any]) -> Any:
    info = extra_data.get("extra_pnginfo")
    workflow = info.get("workflow") if isinstance(info, dict) else None
    found = workflow.get("id") if isinstance(workflow, dict) else None
    is_short = len(found) <= MAX_WORKFLOW_ID if isinstance(found, str) else isinstance(found, (int, float))
    return found if is_short else None


def _pruned(job: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in job.items() if value is not None}


def _items(outputs: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Each output as (node_id, media_type, item); a 3D file's bare name as the object that stands for it."""
    for node_id, node_outputs in outputs.items():
        if not isinstance(node_outputs, dict):
            continue
        for media, items in node_outputs.items():
            # ``animated`` is a flag about the others.
            if media != "animated" and isinstance(items, list):
                for item in items:
                    yield node_id, media, _as_file(item)


def _as_file(item: Any) -> Any:
    if isinstance(item, str) and item.lower().endswith(_3D):
        return {"filename": item, "type": "output", "subfolder": "", "mediaType": "3d"}
    return item


def _normalized(outputs: Mapping[str, Any]) -> dict[str, Any]:
    def media(name: str, items: Any) -> Any:
        if name == "animated" or not isinstance(items, list):
            return items
        return [_as_file(item) for item in items if item is not None]

    return {
        node_id: {name: media(name, items) for name, items in node.items()} if isinstance(node, dict) else node
        for node_id, node in outputs.items()
    }


def _is_previewable(media: str, item: Mapping[str, Any]) -> bool:
    if media in _PREVIEWABLE:
        return True
    format_ = item.get("format") or ""
    if isinstance(format_, str) and format_.startswith(("video/", "audio/")):
        return True
    return str(item.get("filename", "")).lower().endswith(_3D + _TEXT)


def _counted(outputs: Mapping[str, Any]) -> tuple[int, int, dict[str, Any] | None]:
    """Return how many outputs there are, how many of them can be shown, and the one that is.

    That is a saved visual file, else any other visual one, else a saved text file, else a text.
    """
    count = previewable = 0
    ranked: dict[int, dict[str, Any]] = {}
    for node_id, media, item in _items(outputs):
        if isinstance(item, dict):
            count += 1
            if not _is_previewable(media, item):
                continue
            previewable += 1
            if 0 not in ranked and (rank := _rank(media, item)) not in ranked:
                ranked[rank] = {"mediaType": media, **item, "nodeId": node_id}
        elif media == "text" and item is not None and _TEXT_ALONE not in ranked:
            ranked[_TEXT_ALONE] = {**_text(item), "nodeId": node_id, "mediaType": media}
    if not ranked:
        return count, previewable, None
    best = ranked[min(ranked)]
    # ComfyUI's order of keys: the item's own, then nodeId, then mediaType.
    shown = {**{k: v for k, v in best.items() if k != "mediaType"}, "mediaType": best["mediaType"]}
    return count, previewable, shown


def _rank(media: str, item: Mapping[str, Any]) -> int:
    if media == "text" or str(item.get("filename", "")).lower().endswith(_TEXT):
        return 2
    return 0 if item.get("type") == "output" else 1


def _text(item: Any) -> dict[str, Any]:
    value = str(item[0] if item else "") if isinstance(item, (tuple, list)) else str(item)
    return {"content": value[:_MAX_TEXT], "truncated": True} if len(value) > _MAX_TEXT else {"content": value}


def shortened(value: Any, maximum: int) -> Any:
    """Return JSON in about `maximum` bytes: long texts are cut; objects and arrays too long for that are emptied.

    The longest parts give way: each member of an object has its share of what the shorter ones leave.
    """
    size = len(json_codec.dumps(value))
    if size <= maximum:
        return value
    if isinstance(value, str):
        return value[: max(maximum // 4, 1)] + "…"
    if not isinstance(value, dict) or maximum < 2 * len(value):
        return None
    sizes = {key: len(json_codec.dumps(item)) for key, item in value.items()}
    short: dict[str, Any] = {}
    left, count = maximum - sum(len(json_codec.dumps(key)) + 2 for key in value), len(value)
    for key in sorted(sizes, key=sizes.__getitem__):
        short[key] = shortened(value[key], max(left // count, 0))
        left, count = left - len(json_codec.dumps(short[key])), count - 1
    return {key: short[key] for key in value}


@dataclass(frozen=True, slots=True)
class JobsQuery:
    """Query of GET /api/jobs: filters, order and page."""

    statuses: tuple[str, ...] = STATUSES
    workflow_id: str | None = None
    sort_by: str = "created_at"
    descending: bool = True
    limit: int | None = None
    offset: int = 0


def parse_jobs_query(query: Mapping[str, str]) -> JobsQuery | str:
    """Return the parsed query; a string is the sentence of ComfyUI's 400."""
    statuses = tuple(s.strip().lower() for s in query.get("status", "").split(",") if s.strip())
    invalid = [status for status in statuses if status not in STATUSES]
    if invalid:
        return f"Invalid status value(s): {', '.join(invalid)}. Valid values: {', '.join(STATUSES)}"
    sort_by = query.get("sort_by", "created_at").lower()
    if sort_by not in ("created_at", "execution_duration"):
        return "sort_by must be 'created_at' or 'execution_duration'"
    order = query.get("sort_order", "desc").lower()
    if order not in ("asc", "desc"):
        return "sort_order must be 'asc' or 'desc'"
    limit = None
    if "limit" in query:
        try:
            limit = int(query["limit"])
        except ValueError:
            return "limit must be an integer"
        if limit <= 0:
            return "limit must be a positive integer"
    try:
        offset = max(int(query.get("offset", 0)), 0)
    except ValueError:
        return "offset must be an integer"
    return JobsQuery(statuses or STATUSES, query.get("workflow_id") or None, sort_by, order == "desc", limit, offset)


@dataclass(frozen=True, slots=True)
class Listed:
    """The fields by which a job is filtered and sorted. `workflow_id` is encoded; times are milliseconds."""

    status: str
    created: int
    duration: int = 0
    workflow_id: bytes | None = None


def _milliseconds(time: Any) -> int:
    """Return a time to sort by; 0 if it is none, because a custom node may write anything into a status's messages."""
    is_number = isinstance(time, (int, float)) and abs(time) < END_OF_TIME
    return int(time) if is_number else 0


def listed(job: Mapping[str, Any]) -> Listed:
    """Return the fields by which a job is filtered and sorted."""
    start, end = _milliseconds(job.get("execution_start_time")), _milliseconds(job.get("execution_end_time"))
    workflow_id = job.get("workflow_id")
    return Listed(
        job["status"],
        _milliseconds(job.get("create_time")),
        end - start if start and end else 0,
        None if workflow_id is None else json_codec.dumps(workflow_id),
    )


def encoded_workflow_id(extra_data: Mapping[str, Any]) -> bytes | None:
    """Return the encoded id of the workflow in a prompt's extra_data; None if it has none."""
    workflow_id = _workflow_id(extra_data)
    return None if workflow_id is None else json_codec.packed(json_codec.dumps(workflow_id))


def page_of(jobs: Sequence[tuple[Listed, T]], query: JobsQuery) -> tuple[list[tuple[Listed, T]], dict[str, Any]]:
    """Return the page that a query asks for, and its ``pagination``. Jobs of the same time keep their order."""
    found = jobs if query.statuses == STATUSES else [each for each in jobs if each[0].status in query.statuses]
    if query.workflow_id:
        workflow_id = json_codec.dumps(query.workflow_id)
        found = [each for each in found if each[0].workflow_id == workflow_id]
    by = _duration if query.sort_by == "execution_duration" else _created
    page = sorted(found, key=by, reverse=query.descending)[query.offset :]
    page = page if query.limit is None else page[: query.limit]
    pagination = {
        "offset": query.offset,
        "limit": query.limit,
        "total": len(found),
        "has_more": query.offset + len(page) < len(found),
    }
    return page, pagination


def list_jobs(jobs: Sequence[dict[str, Any]], query: JobsQuery) -> dict[str, Any]:
    """Return the answer of GET /api/jobs, from jobs that are not encoded yet."""
    page, pagination = page_of([(listed(job), job) for job in jobs], query)
    return {"jobs": [job for _, job in page], "pagination": pagination}


def _duration(each: tuple[Listed, object]) -> int:
    return each[0].duration


def _created(each: tuple[Listed, object]) -> int:
    return each[0].created
