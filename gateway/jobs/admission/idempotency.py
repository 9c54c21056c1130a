"""Idempotency of POST /prompt: a repeated prompt_id gets the reply that the first one got.

A client that got no answer may safely send the same prompt again under the same id: it gets the same answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager

from gateway.jobs.admission.replies import Reply, accepted_before
from gateway.jobs.state.job import Job
from gateway.jobs.state.ledger import Ledger
from gateway.jobs.state.submission import Submission, id_in_use


class IdempotentReplies:
    """Index of the replies to prompts that were sent before."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._awaited: dict[tuple[str, str], asyncio.Future[Reply]] = {}

    @contextmanager
    def to(self, job: Job) -> Iterator[asyncio.Future[Reply]]:
        """Yield the future reply to a job that is being accepted. The block sets it, or the future fails with it."""
        reply = self._awaited[job.key] = asyncio.get_running_loop().create_future()
        reply.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            yield reply
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError):
                reply.cancel()
            else:
                reply.set_exception(error)
            raise
        finally:
            if self._awaited.get(job.key) is reply:
                del self._awaited[job.key]

    def earlier(self, tenant: str, submission: Submission) -> Awaitable[Reply] | None:
        """Return the reply to the same prompt, sent before under the same id; None if there was none.

        Raises:
            Rejection: the id is in use for another prompt.
        """
        if submission.prompt_id is None:
            return None
        job = self._ledger.find(tenant, submission.prompt_id)
        ended = self._ledger.history.find(tenant, submission.prompt_id)
        known = accepted_before(job, ended, submission.number is not None)
        if known is None:
            return None
        if known.digest != submission.digest:
            raise id_in_use()
        reply = self._awaited.get((tenant, submission.prompt_id))
        if reply is None:
            reply = asyncio.get_running_loop().create_future()
            reply.set_result(known.reply)
        return asyncio.shield(reply)
