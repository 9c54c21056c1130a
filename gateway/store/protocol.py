"""`Store`: the data that must outlive the process.

Ledger and sessions know these protocols alone, not their implementation.
"""

from __future__ import annotations

from asyncio import Future
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from gateway.store.artifact_reads import ArtifactReads
from gateway.store.artifact_records import ArtifactChange
from gateway.store.backend_records import BackendRecord as BackendRecord
from gateway.store.backend_records import PoisonousRecord, PoisonousRemoval, RestartRecord
from gateway.store.forgotten_records import ForgottenChange, ForgottenRecord
from gateway.store.known_backends import KnownBackends
from gateway.store.learned_records import LearnedRecord
from gateway.store.v2_records import V2Change, V2Reads
from gateway.store.webhook_records import DeliveryRecord, EndpointRecord, EventRecord, WebhookChange
from gateway.store.workflow_records import WorkflowChange, WorkflowReads


class StoreError(Exception):
    """Failure to read or write the journal; the text names the fault and the remedy."""


class StoreDamaged(StoreError):
    """Damage of the journal: its contents are not as they were written."""


@dataclass(frozen=True, slots=True)
class JobRecord:
    """An open job. Times are milliseconds since 1970; `submission` is the compressed prompt as it was accepted.

    `upstream_id` and `mark` belong to its assignment, and are empty while it has none. `given_up` are its earlier
    assignments, as a JSON list of ``[backend, upstream_id, mark]``. `webhook` is the prompt's own, as JSON; empty if it
    has none.
    """

    tenant: str
    prompt_id: str
    gateway: str
    number: float
    tag: float
    state: str
    backend: str | None
    upstream_id: str
    create_time: int
    start_time: int | None
    attempts: int
    digest: bytes | None
    node_errors: bytes | None
    submission: bytes
    mark: str = ""
    given_up: bytes = b"[]"
    webhook: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class JobUpdate:
    """The fields of an open job that change while it lives."""

    tenant: str
    prompt_id: str
    state: str
    backend: str | None
    upstream_id: str
    start_time: int | None
    attempts: int
    node_errors: bytes | None
    mark: str = ""
    given_up: bytes = b"[]"
    tag: float = 0.0


@dataclass(frozen=True, slots=True)
class JobRemoval:
    """An open job that leaves no history entry: refused by its backend, or cancelled before it ran."""

    tenant: str
    prompt_id: str


@dataclass(slots=True)
class KeptSize:
    """The bytes that a record takes in the journal: 0 until it is written there."""

    bytes: int = 0


@dataclass(frozen=True, slots=True)
class HistoryRecord:
    """A job that ended. Writing it removes the open job in the same commit. `entry` is the history entry's JSON.

    The store sets `kept`, because it compresses the entry. A large entry comes compressed, as `packed`, and `entry` is
    empty.
    """

    tenant: str
    prompt_id: str
    backend: str | None
    upstream_id: str
    number: float
    outcome: str
    digest: bytes | None
    node_errors: bytes | None
    summary: bytes
    entry: bytes = b""
    kept: KeptSize = field(default_factory=KeptSize, compare=False, repr=False)
    packed: bytes = field(default=b"", compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class HistoryRemoval:
    """A history entry that its owner deleted, or that is past the number kept."""

    tenant: str
    prompt_id: str


@dataclass(frozen=True, slots=True)
class FileRecord:
    """A file a tenant may see: `filename` is the tenant's name for it, `upstream` the name on its backend.

    `etag` identifies the file there (see `gateway.files.identity`), None while that is not known. `anew` is 1 if
    another tenant's file had its name there before. `made_at` is the time of the last report of it (milliseconds since
    1970). `upstream_subfolder` is its folder there, None if that is `subfolder`.
    """

    tenant: str
    kind: str
    subfolder: str
    filename: str
    backend: str
    upstream: str
    etag: str | None = ""
    anew: int = 0
    made_at: int = 0
    upstream_subfolder: str | None = None


@dataclass(frozen=True, slots=True)
class FileRemoval:
    """A name that means nothing any more: another file took its file's place."""

    tenant: str
    kind: str
    subfolder: str
    filename: str


@dataclass(frozen=True, slots=True)
class DeletedRecord:
    """A backend's file that its owner `tenant` deleted, by its name and ETag there; or an upload of any tenant.

    An upload has no `backend`, the kind ``upload``, and its digest as `filename`. `deleted_at` is milliseconds since
    1970.
    """

    backend: str
    kind: str
    subfolder: str
    filename: str
    tenant: str = ""
    etag: str = ""
    deleted_at: int = 0


@dataclass(frozen=True, slots=True)
class DeletedRemoval:
    """A deleted file that is remembered no more: another file has its name, or too many are remembered."""

    backend: str
    kind: str
    subfolder: str
    filename: str


@dataclass(frozen=True, slots=True)
class UploadRecord:
    """An upload: its tenant's name for it, its bytes (`digest`, `size`), its last use (milliseconds since 1970).

    `brought_at` is the time of the upload, 0 if an earlier version took it. `ended` is 1 if it is to be deleted,
    because a job that named it has ended.
    """

    tenant: str
    kind: str
    subfolder: str
    filename: str
    digest: str
    size: int
    used_at: int
    brought_at: int = 0
    ended: int = 0


@dataclass(frozen=True, slots=True)
class UploadEnd:
    """The order to delete an upload, because a job that named it has ended. It has no effect if the upload is gone."""

    tenant: str
    kind: str
    subfolder: str
    filename: str


@dataclass(frozen=True, slots=True)
class UploadRemoval:
    """An upload whose time is over, or that its owner deleted."""

    tenant: str
    kind: str
    subfolder: str
    filename: str


@dataclass(frozen=True, slots=True)
class PlacementRecord:
    """Bytes of ours on a backend: `filename` there, where `wanted` was asked for; `etag` as its /view says it."""

    backend: str
    kind: str
    subfolder: str
    filename: str
    wanted: str
    digest: str
    etag: str


@dataclass(frozen=True, slots=True)
class BackendUrls:
    """The backends' current URLs, as `known_backends.written_urls` writes them."""

    text: str


@dataclass(frozen=True, slots=True)
class ModelNames:
    """The models that metrics name, as JSON: a list of ``[name, seconds since 1970 of its last use]``."""

    text: str


@dataclass(frozen=True, slots=True)
class ClockReading:
    """A reading of the clocks: `time` (milliseconds since 1970), and `uptime` since the machine's `boot`.

    If the two went apart since the last reading of this boot, the time was set. The store then moves all marks with
    it, because history entries are no older for that.
    """

    time: int
    uptime: int
    boot: str


@dataclass(frozen=True, slots=True)
class TimeMark:
    """All that is in the history ended by then (milliseconds since 1970). From such marks the store tells ages."""

    time: int


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """A key that was made over the admin API: SHA-256 digests alone. Times are milliseconds since 1970.

    `old_digest` holds until `old_until` after a rotation. An empty `tenant` is the key's own name.
    """

    name: str
    digest: str
    role: str
    tenant: str
    created: int
    expires: int | None = None
    old_digest: str | None = None
    old_until: int | None = None
    used_at: int | None = None


@dataclass(frozen=True, slots=True)
class KeyUse:
    """The time of a key's last use. It has no effect if the key was revoked."""

    name: str
    used_at: int


@dataclass(frozen=True, slots=True)
class KeyRemoval:
    """A key that was revoked."""

    name: str


@dataclass(frozen=True, slots=True)
class SignInRecord:
    """A browser that signed in: the digest of its cookie's secret, the digest of the key, and the end."""

    digest: str
    key_digest: str
    expires: int


@dataclass(frozen=True, slots=True)
class SignInRemoval:
    """A sign-in that is over."""

    digest: str


Change = (
    JobRecord
    | JobUpdate
    | JobRemoval
    | HistoryRecord
    | HistoryRemoval
    | FileRecord
    | FileRemoval
    | DeletedRecord
    | DeletedRemoval
    | UploadRecord
    | UploadEnd
    | UploadRemoval
    | PlacementRecord
    | BackendRecord
    | PoisonousRecord
    | PoisonousRemoval
    | RestartRecord
    | BackendUrls
    | ModelNames
    | ClockReading
    | TimeMark
    | KeyRecord
    | KeyUse
    | KeyRemoval
    | SignInRecord
    | SignInRemoval
    | WebhookChange
    | V2Change
    | WorkflowChange
    | ArtifactChange
    | ForgottenChange
    | LearnedRecord
)


class Store(ArtifactReads, V2Reads, WorkflowReads, Protocol):
    """The data that outlives the process."""

    async def open(self) -> None:
        """Open the store.

        Raises:
            StoreError: another gateway uses it, it is damaged, or of a newer version.
        """

    async def close(self) -> None:
        """Write the queued changes, and close the store."""

    def write(self, changes: Sequence[Change]) -> Future[None]:
        """Queue changes that have happened already and must be known after a restart, in order.

        While the disk takes nothing, the store keeps the changes, and writes them in order as soon as it does. The
        future is done when they are durable. It fails with `StoreError` if they can't be written at all.
        """

    def try_write(self, changes: Sequence[Change]) -> Future[None]:
        """Queue changes that can be refused still, such as a new prompt, in order with the others.

        The future is done when they are durable. It fails with `StoreError` while the disk takes nothing, and then
        they never are.
        """

    @property
    def trouble(self) -> str:
        """Return the reason why the journal can't be written now; empty while it can."""

    @property
    def owed(self) -> int:
        """Return the number of writes that are kept until the disk takes them."""

    async def names_key(self) -> bytes:
        """Return the key of secret names: 32 bytes, the same for ever.

        Raises:
            StoreError: it can't be read.
        """

    async def identity(self) -> str:
        """Return the client_id that this gateway uses towards its backends; the same after a restart."""

    async def open_jobs(self) -> list[JobRecord]:
        """Return all open jobs, oldest first."""

    async def history(self) -> list[HistoryRecord]:
        """Return all ended jobs, in the order in which they ended, without their entries."""

    async def history_entry(self, tenant: str, prompt_id: str) -> bytes | None:
        """Return one history entry's JSON."""

    async def oldest_history(self, limit: int, ended_before: int | None = None) -> list[tuple[str, str]]:
        """Return the (tenant, prompt_id) of the jobs that ended first, at most `limit`.

        With `ended_before` (milliseconds since 1970), return jobs that had ended by then, by the marks.
        """

    async def files(self) -> list[FileRecord]:
        """Return all known files."""

    async def deleted(self) -> list[DeletedRecord]:
        """Return all files that owners deleted, the first deleted first."""

    async def forgotten(self) -> list[ForgottenRecord]:
        """Return all forgotten files of backends, the first forgotten first."""

    async def uploads(self) -> list[UploadRecord]:
        """Return all uploads."""

    async def placements(self) -> list[PlacementRecord]:
        """Return all placements of uploads on backends."""

    async def backends(self) -> list[BackendRecord]:
        """Return the record of each backend."""

    async def poisonous(self) -> list[PoisonousRecord]:
        """Return the poisonous graphs, the oldest first."""

    async def restarts(self) -> list[RestartRecord]:
        """Return the restarts of each backend that was ever restarted."""

    async def known_backends(self) -> KnownBackends:
        """Return the backends that the journal knows, by name, also backends that are configured no more."""

    async def model_names(self) -> str:
        """Return the models that metrics name, as `ModelNames` has them; an empty text if there are none."""

    async def learned(self) -> bytes:
        """Return what routing learned, as `LearnedRecord` has it; empty if there is nothing."""

    async def keys(self) -> list[KeyRecord]:
        """Return all keys that were made over the admin API and not revoked."""

    async def had_keys(self) -> bool:
        """Return True if a key was ever made over the admin API."""

    async def sign_ins(self) -> list[SignInRecord]:
        """Return all sign-ins, ordered by their end."""

    async def webhook_endpoints(self) -> list[EndpointRecord]:
        """Return all endpoints of webhooks, the oldest first."""

    async def webhook_events(self) -> list[EventRecord]:
        """Return all events of webhooks without their payload, the oldest first."""

    async def webhook_deliveries(self) -> list[DeliveryRecord]:
        """Return all deliveries of webhooks."""

    async def webhook_payload(self, event_id: str) -> bytes | None:
        """Return the payload of an event; None if the event is gone."""
