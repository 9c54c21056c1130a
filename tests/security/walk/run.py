"""The walk: sends prompts, waits for their ends, and holds all that comes back against the victim's secrets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from tests.security.walk.attacks import MARK, UNDECLARED, Targets, Variant, for_others, for_text, for_undeclared, plain
from tests.security.walk.graphs import CannotFill, Recipes, helpers_known
from tests.security.walk.verdict import Finding, Secrets
from tests.security.walk.victim import Disk
from tests.support.comfy_client import Comfy

CLIENT_ID = "walk-ben"
WORD = "walkw"
MAX_POSTS = 16
MAX_RUNNING = 12
MAX_FILES = 8
MAX_LOST = 200
RUN_SECONDS = 30.0
# After so many prompts the attacker reads all that it can read, and the disk is looked at.
READ_EVERY = 2000
# What a refusal of the gateway's own is called.
_GATEWAYS = frozenset({"node_not_trusted", "input_refused", "node_denied", "model_denied", "prompt_refused"})


@dataclass(frozen=True, slots=True)
class Case:
    """One prompt of the walk."""

    number: int
    class_type: str
    input_name: str
    variant: Variant

    @property
    def prompt_id(self) -> uuid.UUID:
        """Return the id that the attacker chooses, so that the first event already tells the case."""
        return uuid.UUID(int=self.number + 1, version=4)


@dataclass(frozen=True, slots=True)
class Hit:
    """A secret that came back, and how; `prompt` is what was sent."""

    finding: Finding
    where: str
    case: Case | None
    prompt: str

    def told(self) -> str:
        """Return it in one line."""
        of = f"{self.case.class_type}.{self.case.input_name}, {self.case.variant.label}" if self.case else "no prompt"
        return f"{self.finding.kind} {self.finding.name} in {self.where}: {of}"


@dataclass(slots=True)
class Figures:
    """What the walk did."""

    classes: int = 0
    inputs: int = 0
    ways: set[str] = field(default_factory=set)
    unfillable: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)


def cases(recipes: Recipes, targets: Targets, info: Mapping[str, Any], chosen: list[str], seen: Figures) -> list[Case]:
    """Return the prompts: each input of each class in every way, and some inputs that no class declares."""
    text, others = ([v for v in make(targets) if helpers_known(v, info)] for make in (for_text, for_others))
    undeclared = [v for v in for_undeclared(targets) if helpers_known(v, info)]
    found: list[Case] = []
    for class_type in chosen:
        known = recipes.inputs(class_type)
        seen.classes += 1
        seen.unfillable += not recipes.is_fillable(class_type)
        seen.inputs += len({each.name for each in known})
        ways: list[tuple[str, list[Variant]]] = [
            (each.name, text if recipes.takes_text(each) else others) for each in known
        ]
        declared = {each.name for each in known}
        ways += [(name, undeclared) for name in UNDECLARED if name not in declared]
        for name, variants in ways:
            # Without a model the prompt can't run; what it is refused with is looked at once.
            is_fillable = recipes.can_fill(class_type, name)
            for variant in variants if is_fillable else variants[:1]:
                seen.ways.add(variant.label)
                found.append(Case(len(found), class_type, name, variant))
    return found


def sample(found: list[Case], limit: int | None, seed: int) -> list[Case]:
    """Return so many of the cases, or all, in an order of the seed's."""
    mixed = random.Random(seed).sample(found, len(found))
    return mixed if limit is None else mixed[:limit]


class Walk:
    """Walks as the attacker. Hits are collected, each kind once a case."""

    def __init__(self, ben: Comfy, recipes: Recipes, secrets: Secrets, disk: Disk, figures: Figures) -> None:
        self._ben = ben
        self._recipes = recipes
        self._by_number: dict[str, Case] = {}
        self._secrets = secrets
        self._disk = disk
        self._figures = figures
        self.hits: dict[tuple[Finding, int], Hit] = {}
        self.notes: dict[tuple[Finding, int], Hit] = {}
        self._ends: dict[str, asyncio.Future[None]] = {}
        self._cases: dict[str, Case] = {}
        self._running = asyncio.Semaphore(MAX_RUNNING)
        self._files: set[tuple[str, str, str]] = set()

    async def run(self, found: list[Case], progress: Callable[[int], None] = lambda _: None) -> None:
        """Send all prompts; return when all have ended and all is looked at."""
        # Files of an earlier walk are nobody's.
        self._disk.written(WORD)
        self._by_number = {str(case.number): case for case in found}
        connected = asyncio.Event()
        listening = asyncio.create_task(self._stay_connected(connected))
        try:
            async with asyncio.timeout(RUN_SECONDS):
                await connected.wait()
            for start in range(0, len(found), READ_EVERY):
                waiting = iter(found[start : start + READ_EVERY])
                await asyncio.gather(*(self._work(waiting) for _ in range(MAX_POSTS)))
                await self.look_around()
                progress(min(start + READ_EVERY, len(found)))
        finally:
            listening.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await listening

    async def _work(self, waiting: Iterator[Case]) -> None:
        for case in waiting:
            try:
                await self._one(case)
            except (TimeoutError, aiohttp.ClientError):
                # A walk takes half an hour. If the machine sleeps meanwhile, only the requests under way are lost.
                self._figures.counts["without an answer"] += 1
                if self._figures.counts["without an answer"] > MAX_LOST:
                    raise
            finally:
                self._cases.pop(str(case.prompt_id), None)

    async def _one(self, case: Case) -> None:
        text = self._body(case)
        if text is None:
            self._figures.counts["can't be filled"] += 1
            return
        self._cases[str(case.prompt_id)] = case
        async with self._running:
            status, body = await self._post(text)
            self._figures.counts["sent"] += 1
            self._found(self._secrets.in_bytes(body), f"the answer {status}", case)
            answer = _json(body)
            self._found(self._secrets.in_value(answer), f"the answer {status}", case)
            if status != 200 or not isinstance(answer, dict):
                self._refused(status, answer)
                return
            self._figures.counts["accepted"] += 1
            await self._ended(str(case.prompt_id))
            await self._read(str(case.prompt_id), case)

    def _body(self, case: Case) -> str | None:
        try:
            prompt = self._recipes.prompt(case.class_type, case.input_name, case.variant)
        except CannotFill:
            return None
        body = {"prompt": prompt, "client_id": CLIENT_ID, "prompt_id": str(case.prompt_id)}
        return json.dumps(body).replace(MARK, f"{WORD}{case.number}w")

    async def _post(self, text: str) -> tuple[int, bytes]:
        headers = {**self._ben.headers, "Content-Type": "application/json"}
        while True:
            async with self._ben.http.post(f"{self._ben.url}/prompt", data=text.encode(), headers=headers) as answer:
                body = await answer.read()
                if answer.status not in (429, 503):
                    return answer.status, body
            self._figures.counts["asked again"] += 1
            await asyncio.sleep(0.5)

    def _refused(self, status: int, answer: Any) -> None:
        error = answer.get("error") if isinstance(answer, dict) else None
        type_ = error.get("type", "?") if isinstance(error, dict) else str(status)
        self._figures.refused[type_] += 1
        self._figures.counts["refused by the gateway" if type_ in _GATEWAYS else "refused by ComfyUI's rules"] += 1

    async def _ended(self, prompt_id: str) -> None:
        """Wait for a prompt's end. What takes too long is cancelled."""
        end = self._ends.setdefault(prompt_id, asyncio.get_running_loop().create_future())
        try:
            async with asyncio.timeout(RUN_SECONDS):
                await end
        except TimeoutError:
            self._figures.counts["cancelled"] += 1
            await self._ben.post(f"/api/jobs/{prompt_id}/cancel")
        finally:
            self._ends.pop(prompt_id, None)

    async def _read(self, prompt_id: str, case: Case) -> None:
        """Look at a prompt's history entry, and at all files that it names."""
        entry = (await self._ben.get(f"/history/{prompt_id}")).get(prompt_id)
        if entry is None:
            self._figures.counts["without an entry"] += 1
            return
        self._found(self._secrets.in_value(entry), "its history entry", case)
        succeeded = entry["status"]["status_str"] == "success"
        self._figures.counts["run" if succeeded else "failed in a node"] += 1
        files = list(_files(entry["outputs"]))[:MAX_FILES]
        if any(filename in self._disk.names for filename, _, _ in files):
            self._look_at_disk(case)
        for file in files:
            await self._view(file, case)

    def _look_at_disk(self, case: Case | None) -> None:
        for path in self._disk.changed():
            self._found({Finding("disk", f"changed {path.name}")}, str(path), case)

    async def _view(self, file: tuple[str, str, str], case: Case | None) -> None:
        filename, subfolder, kind = file
        if file in self._files:
            return
        self._files.add(file)
        query = {"filename": filename, "subfolder": subfolder, "type": kind}
        async with self._ben.http.get(f"{self._ben.url}/view", params=query, headers=self._ben.headers) as answer:
            body = await answer.read()
            self._figures.counts["files looked at"] += answer.status == 200
        where = f"/view of {kind}/{subfolder}/{filename}"
        found = await asyncio.to_thread(self._secrets.in_file, body)
        self._found(found, where, case)

    async def _stay_connected(self, connected: asyncio.Event) -> None:
        url = f"{self._ben.url}/ws?clientId={CLIENT_ID}&events=interleave"
        while True:
            async with self._ben.http.ws_connect(url, max_msg_size=0, headers=self._ben.headers) as socket:
                connected.set()
                await self._listen(socket)
            self._figures.counts["sockets lost"] += 1

    async def _listen(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        async for message in socket:
            if message.type is aiohttp.WSMsgType.BINARY:
                self._found(self._secrets.in_file(_image_in(message.data)), "a binary frame", None)
            elif message.type is aiohttp.WSMsgType.TEXT:
                event = json.loads(message.data)
                data = event.get("data") if isinstance(event.get("data"), dict) else {}
                case = self._cases.get(str(data.get("prompt_id")))
                self._found(self._secrets.in_bytes(message.data.encode()), f"the event {event.get('type')}", case)
                if event.get("type") == "executing" and data.get("node") is None:
                    prompt_id = str(data.get("prompt_id"))
                    end = self._ends.setdefault(prompt_id, asyncio.get_running_loop().create_future())
                    if not end.done():
                        end.set_result(None)

    def _found(self, found: set[Finding], where: str, case: Case | None) -> None:
        for finding in found:
            kept = self.notes if finding.kind == "note" else self.hits
            prompt = "" if case is None else self._body(case) or ""
            if finding.kind == "note" and (case is None or finding.name in prompt):
                # The attacker said it.
                continue
            kept.setdefault((finding, -1 if case is None else case.number), Hit(finding, where, case, prompt))

    async def look_around(self) -> None:
        """Read all lists as the attacker, and look at the disk."""
        for path in (
            "/queue",
            "/history?max_items=500",
            "/api/jobs?limit=500",
            "/object_info",
            "/models",
            "/models/loras",
            "/models/checkpoints",
            "/models/datasets",
            "/experiment/models",
            "/embeddings",
            "/system_stats",
            "/internal/logs",
            "/internal/files/input",
            "/internal/files/output",
            "/internal/files/temp",
            "/userdata?dir=.&recurse=true",
            "/api/assets",
        ):
            async with self._ben.http.get(self._ben.url + path, headers=self._ben.headers) as answer:
                body = await answer.read()
            self._found(await asyncio.to_thread(self._secrets.in_bytes, body), f"GET {path}", None)
        self._look_at_disk(None)
        for path in await asyncio.to_thread(self._disk.written, WORD):
            number = path.name.split(WORD, 1)[1].split("w", 1)[0]
            self._found({Finding("disk", "written outside output/")}, str(path), self._by_number.get(number))

    def found_lost(self, names: list[str]) -> None:
        """Count files that their owner has lost as hits."""
        for name in names:
            self._found({Finding("lost", name)}, "/view as its owner", None)

    async def view_names(self, targets: Targets) -> None:
        """Ask for the victim's files by their names."""
        for name in plain(targets).values():
            subfolder, _, filename = name.split(" [")[0].rpartition("/")
            for kind in ("input", "output", "temp"):
                await self._view((filename, subfolder, kind), None)


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return None


def _image_in(data: bytes) -> bytes:
    """Return the image in a binary event, whatever stands before it."""
    starts = [data.find(magic) for magic in (b"\x89PNG", b"\xff\xd8\xff", b"RIFF") if magic in data]
    return data[min(starts) :] if starts else data


def _files(outputs: Any) -> Iterator[tuple[str, str, str]]:
    """Yield all files that outputs name: as objects, and as texts in `result` (Preview3D and its kin)."""
    left: list[Any] = [outputs]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            if isinstance(value.get("filename"), str):
                yield value["filename"], str(value.get("subfolder", "")), str(value.get("type", "output"))
            for text in value.get("result", ()) if isinstance(value.get("result"), list) else ():
                if isinstance(text, str) and "." in text and len(text) < 500:
                    folder, _, name = text.rpartition("/")
                    yield name, folder, "output"
            left.extend(value.values())
        elif isinstance(value, list):
            left.extend(value)
