"""Receive webhooks: verify their signatures, and do the work of each event once, however often it is delivered.

    WEBHOOK_SECRET=whsec_… python webhook_receiver.py

From the environment: WEBHOOK_SECRET, PORT (8300), and INBOX, the database of received events. Needs Python alone.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import http.server
import json
import os
import re
import sqlite3
import sys
import threading
import time
from email.message import Message

SECRET = os.environ.get("WEBHOOK_SECRET", "")
PORT = int(os.environ.get("PORT", "8300"))
INBOX = os.environ.get("INBOX", "webhooks.sqlite3")
MAX_AGE_SECONDS = 300
arrived = threading.Event()


def signing_key(secret: str) -> bytes:
    """Return the bytes of a secret.

    Raises:
        ValueError: it is no secret of Standard Webhooks.
    """
    prefix, _, encoded = secret.partition("_")
    key = base64.b64decode(encoded, validate=True)
    if prefix != "whsec" or len(key) < 24:
        raise ValueError("not whsec_ and the base64 of 24 bytes or more")
    return key


def is_signed(key: bytes, headers: Message, body: bytes) -> bool:
    """Return True if a request of the last minutes bears a signature that fits its id, its time and its body."""
    event_id, sent_at = headers.get("webhook-id", ""), headers.get("webhook-timestamp", "")
    if not event_id or not re.fullmatch(r"[0-9]{1,12}", sent_at) or abs(time.time() - int(sent_at)) > MAX_AGE_SECONDS:
        return False
    mac = hmac.new(key, f"{event_id}.{sent_at}.".encode() + body, hashlib.sha256).digest()
    expected = b"v1," + base64.b64encode(mac)
    given = headers.get("webhook-signature", "").encode().split()
    return any(hmac.compare_digest(expected, each) for each in given)


def open_inbox() -> sqlite3.Connection:
    """Open the database of received events. An event's id is its key, so each is in it once."""
    inbox = sqlite3.connect(INBOX, timeout=10)  # Seconds; others may be writing.
    inbox.execute("CREATE TABLE IF NOT EXISTS events (id TEXT PRIMARY KEY, body BLOB, done INTEGER DEFAULT 0)")
    return inbox


class Receiver(http.server.BaseHTTPRequestHandler):
    """A receiver that answers once the event is safe on disk. The work comes afterwards: no delivery waits for it."""

    timeout = 10

    def do_POST(self) -> None:
        """Keep a signed event."""
        length = self.headers.get("Content-Length", "")
        if not re.fullmatch(r"[0-9]{1,5}", length):  # An event has less than 20 KB.
            return self.answer(413)
        body = self.rfile.read(int(length))
        # The bytes as they came: JSON that was read and written again has another signature.
        if not is_signed(signing_key(SECRET), self.headers, body):
            return self.answer(401)
        inbox = open_inbox()
        with inbox:
            inbox.execute("INSERT OR IGNORE INTO events (id, body) VALUES (?, ?)", (self.headers["webhook-id"], body))
        inbox.close()
        arrived.set()
        return self.answer(204)

    def answer(self, status: int) -> None:
        """Answer without a body."""
        self.send_response(status)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Log nothing: an address of the internet is asked many things."""


def work_on(event_id: str, event: dict[str, object]) -> None:
    """Do the work of one event: put your own here. If it raises, the program ends, and its next start tries again."""
    data = event["data"]
    assert isinstance(data, dict)
    files = [output["filename"] for output in data.get("outputs", ())]
    print(event_id, event["type"], data.get("prompt_id", ""), *files, flush=True)


def work() -> None:
    """Work on the events of the inbox, those of the last run first."""
    inbox = open_inbox()
    while True:
        arrived.clear()
        for event_id, body in inbox.execute("SELECT id, body FROM events WHERE NOT done ORDER BY rowid").fetchall():
            work_on(event_id, json.loads(body))
            with inbox:
                inbox.execute("UPDATE events SET done = 1 WHERE id = ?", (event_id,))
        arrived.wait()


def main() -> None:
    """Receive until Ctrl-C."""
    try:
        signing_key(SECRET)
    except (ValueError, binascii.Error) as error:
        sys.exit(f"WEBHOOK_SECRET is missing or wrong: {error}")
    try:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", PORT), Receiver)
    except OSError as error:
        sys.exit(f"can't listen on port {PORT}: {error}")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"receiving at http://127.0.0.1:{server.server_port}/", flush=True)
    try:
        work()
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
