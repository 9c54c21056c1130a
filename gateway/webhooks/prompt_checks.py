"""Check by the settings the webhook of a prompt (`extra_data.webhook`), and the endpoints of the file. Pure."""

from __future__ import annotations

from dataclasses import replace

from gateway.jobs.state.prompt_webhook import PromptWebhook, refused_webhook
from gateway.settings import WebhookSettings
from gateway.settings.webhooks import JOB_EVENTS, TERMINAL_EVENTS, checked_secret
from gateway.webhooks.urls import BadUrl, Rules, check_url


def check_prompt_webhook(webhook: PromptWebhook, settings: WebhookSettings) -> PromptWebhook:
    """Return a prompt's webhook as it is to be kept: its URL in one spelling, with the default events if it names none.

    Raises:
        Rejection: webhooks are off, or the settings don't permit this one. The refusal repeats no value of it.
    """
    if not settings.enabled:
        advice = "leave it out and ask for the job's history, or set webhooks.enabled in the gateway's configuration"
        raise refused_webhook("can't be used, because this gateway delivers no webhooks", advice)
    try:
        url = check_url(webhook.url, _rules(settings))
    except BadUrl as error:
        raise refused_webhook(str(error), "give the URL of a receiver that the gateway may call", "url") from None
    if not frozenset(webhook.events) <= frozenset(JOB_EVENTS):
        raise refused_webhook("names an unknown event", f"there are {', '.join(JOB_EVENTS)}", "events")
    if webhook.secret is not None:
        try:
            checked_secret(webhook.secret)
        except ValueError as error:
            raise refused_webhook(str(error), "or leave it out to get unsigned events", "secret") from None
    return replace(webhook, url=url, events=webhook.events or TERMINAL_EVENTS)


def endpoint_problems(settings: WebhookSettings) -> list[str]:
    """Return a sentence for each endpoint of the file whose URL the settings don't permit."""
    found = []
    for place, endpoint in enumerate(settings.endpoints):
        try:
            check_url(endpoint.url, _rules(settings))
        except BadUrl as error:
            found.append(f"webhooks.endpoints[{place}].url: {error}")
    return found


def _rules(settings: WebhookSettings) -> Rules:
    return Rules.of(settings.allow_http, settings.allow_networks, settings.ports)
