"""`extra_data.webhook` is taken out of a prompt, and checked without a word of what it holds."""

from __future__ import annotations

import json
import pickle
from typing import Any

import pytest

from gateway.jobs.state.prompt_bounds import Rejection
from gateway.jobs.state.prompt_webhook import PromptWebhook, decode_webhook, encode_webhook
from gateway.jobs.state.submission import Submission, decode_from_journal, encode_for_journal, read
from gateway.settings import WebhookSettings
from gateway.settings.webhooks import TERMINAL_EVENTS
from gateway.webhooks.prompt_checks import check_prompt_webhook
from tests.support.workflows import slow

URL = "https://hooks.example/hunter2?token=hunter2"
SECRET = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="


def read_with(webhook: Any, prompt_id: str | None = None) -> Submission:
    """Read a prompt with a webhook."""
    body = {"prompt": slow(), "extra_data": {"webhook": webhook, "metadata": {"order": 1}}}
    return read(json.dumps(body | ({"prompt_id": prompt_id} if prompt_id else {})).encode())


def checked(webhook: Any, settings: WebhookSettings | None = None) -> PromptWebhook:
    """Read a webhook as POST /prompt does."""
    found = read_with(webhook).webhook
    assert found is not None
    return check_prompt_webhook(found, settings or WebhookSettings())


def test_nothing_of_it_is_left_in_what_is_kept_sent_or_shown() -> None:
    found = read_with({"url": URL, "secret": SECRET})
    assert json.loads(found.extra_data) == {"metadata": {"order": 1}}
    for kept in (found.prompt, found.extra_data, found.rest, encode_for_journal(found), repr(found).encode()):
        assert b"hunter2" not in kept
        assert SECRET[6:].encode() not in kept
    assert found.webhook is not None
    assert (found.webhook.url, found.webhook.secret) == (URL, SECRET)
    assert found.size > read_with(None).size + len(URL)


def test_the_journal_gives_it_back() -> None:
    found = read_with({"url": URL, "events": ["job.failed"], "secret": SECRET})
    again = decode_from_journal(encode_for_journal(found), None, encode_webhook(found.webhook))
    assert again.webhook == found.webhook
    assert pickle.loads(pickle.dumps(found)).webhook == found.webhook
    assert encode_webhook(read_with(None).webhook) == b""
    assert decode_webhook(b"") is None


def test_the_same_id_with_another_webhook_is_another_request() -> None:
    id_ = "0f8fad5b-d9cb-469f-a165-70867728950e"
    digests = {read_with(webhook, id_).digest for webhook in (None, {"url": URL}, {"url": URL + "2"}, {"url": URL})}
    assert len(digests) == 3


@pytest.mark.parametrize(
    ("webhook", "where", "said"),
    [
        (URL, "", "must be an object; got a string"),
        ([URL], "", "must be an object; got a list"),
        ({"url": URL, "hunter2": 1}, "", "has a field that there is not"),
        ({}, "url", "must be a text; got null"),
        ({"url": 5}, "url", "must be a text; got a number"),
        ({"url": URL + "x" * 2048}, "url", "characters"),
        ({"url": URL, "events": "job.failed"}, "events", "must be a list"),
        ({"url": URL, "events": []}, "events", "must be a list"),
        ({"url": URL, "events": [5]}, "events", "must be a list of texts"),
        ({"url": URL, "events": ["job.failed"] * 21}, "events", "must be a list"),
        ({"url": URL, "events": ["backend.down"]}, "events", "unknown event"),
        ({"url": URL, "events": ["hunter2"]}, "events", "unknown event"),
        ({"url": URL, "secret": 5}, "secret", "must be a text"),
        ({"url": URL, "secret": "hunter2"}, "secret", "must be whsec_"),
        ({"url": URL, "secret": "whsec_hunter2"}, "secret", "must be whsec_"),
        ({"url": "hunter2"}, "url", "https://"),
        ({"url": "http://hooks.example/hunter2"}, "url", "https://"),
        ({"url": "https://hooks.example:8443/hunter2"}, "url", "port"),
        ({"url": "https://hunter2@hooks.example/"}, "url", "user"),
        ({"url": "https://127.0.0.1/hunter2"}, "url", "not public"),
        ({"url": "https://[::ffff:10.0.0.1]/hunter2"}, "url", "not public"),
    ],
)
def test_what_is_refused_is_named_and_not_repeated(webhook: Any, where: str, said: str) -> None:
    with pytest.raises(Rejection) as caught:
        checked(webhook)
    assert caught.value.status == 400
    error = caught.value.body["error"]
    place = f"extra_data.webhook.{where}" if where else "extra_data.webhook"
    assert error["type"] == "invalid_webhook"
    assert error["message"].startswith(f"{place}: ")
    assert said in error["message"]
    assert error["details"]
    assert error["extra_info"] == {"input_name": place}
    assert "hunter2" not in json.dumps(error)


def test_what_is_accepted() -> None:
    found = checked({"url": "https://HOOKS.example:443/a?b=c", "secret": None})
    assert (found.events, found.secret) == (TERMINAL_EVENTS, None)
    assert found.url.startswith("https://hooks.example")
    assert checked({"url": "https://hooks.example/\u00e9\ud800"}).url.isascii()
    inner = WebhookSettings(allow_http=True, allow_networks=("127.0.0.0/8",))
    webhook = {"url": "http://127.0.0.1:9000/x", "events": ["job.failed", "job.failed"]}
    assert checked(webhook, inner).url == "http://127.0.0.1:9000/x"
    with pytest.raises(Rejection, match="delivers no webhooks"):
        checked(webhook, WebhookSettings(enabled=False))
