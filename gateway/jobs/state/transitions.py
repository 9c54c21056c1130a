"""States of a job, and the table of the moves between them."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum


class State(StrEnum):
    """State of a job."""

    ACCEPTED = "accepted"
    WAITING = "waiting"
    SENDING = "sending"
    PENDING = "pending"
    RUNNING = "running"
    COLLECTING = "collecting"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


# States in which a backend has the job, or may have it.
PLACED = frozenset({State.SENDING, State.PENDING, State.RUNNING, State.COLLECTING})
# States in which the job counts as pending on its backend.
QUEUED_THERE = frozenset({State.SENDING, State.PENDING})
# States in which a client may see the job in queue_running.
SHOWN_RUNNING = frozenset({State.RUNNING, State.COLLECTING})


class Move(StrEnum):
    """Event that changes a job's state."""

    HOLD = "hold"
    SEND = "send"
    TAKE = "take"
    START = "start"
    COLLECT = "collect"
    LOSE = "lose"
    RECALL = "recall"
    SUCCEED = "succeed"
    FAIL = "fail"
    CANCEL = "cancel"


TRANSITIONS: Mapping[tuple[State, Move], State] = {
    (State.ACCEPTED, Move.HOLD): State.WAITING,
    (State.ACCEPTED, Move.SEND): State.SENDING,
    (State.WAITING, Move.SEND): State.SENDING,
    (State.SENDING, Move.SEND): State.SENDING,
    (State.SENDING, Move.HOLD): State.WAITING,
    (State.SENDING, Move.TAKE): State.PENDING,
    (State.SENDING, Move.START): State.RUNNING,
    (State.PENDING, Move.START): State.RUNNING,
    (State.SENDING, Move.COLLECT): State.COLLECTING,
    (State.PENDING, Move.COLLECT): State.COLLECTING,
    (State.RUNNING, Move.COLLECT): State.COLLECTING,
    (State.SENDING, Move.LOSE): State.WAITING,
    (State.PENDING, Move.LOSE): State.WAITING,
    (State.RUNNING, Move.LOSE): State.WAITING,
    (State.COLLECTING, Move.LOSE): State.WAITING,
    (State.PENDING, Move.RECALL): State.WAITING,
    (State.COLLECTING, Move.SUCCEED): State.SUCCEEDED,
    (State.COLLECTING, Move.FAIL): State.FAILED,
    (State.COLLECTING, Move.CANCEL): State.CANCELLED,
    (State.ACCEPTED, Move.FAIL): State.FAILED,
    (State.WAITING, Move.FAIL): State.FAILED,
    (State.SENDING, Move.FAIL): State.FAILED,
    (State.ACCEPTED, Move.CANCEL): State.CANCELLED,
    (State.WAITING, Move.CANCEL): State.CANCELLED,
    (State.SENDING, Move.CANCEL): State.CANCELLED,
    (State.PENDING, Move.CANCEL): State.CANCELLED,
    (State.RUNNING, Move.CANCEL): State.CANCELLED,
}


class IllegalMove(Exception):
    """Transition that is not in `TRANSITIONS`: an error in the gateway's code."""


def after(state: State, move: Move) -> State:
    """Return the state that a move leads to.

    Raises:
        IllegalMove: the transition is not in `TRANSITIONS`.
    """
    found = TRANSITIONS.get((state, move))
    if found is None:
        raise IllegalMove(f"{move} while {state}")
    return found
