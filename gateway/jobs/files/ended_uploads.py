"""`uploads.after_job: forget`: delete the uploads that a job named when the job has ended.

The order to delete them is journalled together with the job's end, so that a crash between the two loses nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from gateway.comfy.file_refs import FileRef
from gateway.files.index import FileIndex, Upload
from gateway.files.uploads import UploadInUse, Uploads
from gateway.jobs.state.job import Job
from gateway.jobs.state.job_end import End
from gateway.store.protocol import Change, StoreError, UploadEnd
from gateway.telemetry import logs
from gateway.telemetry.tasks import Tasks

_log = logs.get("uploads")


class EndedUploads:
    """Deletion of uploads at the end of the jobs that named them."""

    def __init__(self, files: FileIndex, uploads: Uploads) -> None:
        self._files = files
        self._uploads = uploads
        self._tasks = Tasks("ended_uploads")

    def restore(self) -> None:
        """Delete the uploads of jobs that ended right before the end of the earlier run."""
        if ended := self._uploads.take_ended():
            self._tasks.start(self._delete(ended), "restore")

    async def close(self) -> None:
        """Stop. The next start deletes what is left."""
        await self._tasks.close()

    def changes(self, job: Job, end: End) -> Sequence[UploadEnd]:  # noqa: ARG002
        """Return the orders to delete a job's uploads, to be written together with its end."""
        return [UploadEnd(job.tenant, ref.kind, ref.subfolder, ref.filename) for ref in self._of(job)]

    def ended(self, job: Job) -> None:
        """Delete a job's uploads, except those that another open job of the tenant names."""
        if ended := [(job.tenant, ref) for ref in self._of(job)]:
            self._tasks.start(self._delete(ended), job.prompt_id)

    def undone(self, job: Job) -> Sequence[Change]:  # noqa: ARG002
        """Return nothing: if the job runs again, it ends again."""
        return ()

    def _of(self, job: Job) -> Iterator[FileRef]:
        """Yield the uploads that a job names. Skip what was uploaded again since, because another prompt is to come."""
        for ref in {file.ref: None for file in job.submission.files if file.ref is not None}:
            found = self._files.find(job.tenant, ref)
            if isinstance(found, Upload) and found.brought_at <= job.create_time:
                yield ref

    async def _delete(self, ended: Iterable[tuple[str, FileRef]]) -> None:
        for tenant, ref in ended:
            try:
                await self._uploads.delete(tenant, ref)
            except UploadInUse:
                # The end of the other job deletes it.
                continue
            except StoreError as error:
                _log.error("ended_upload_not_deleted", tenant=tenant, error=str(error))
