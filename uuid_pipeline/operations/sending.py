"""Sending by Apprise: to the channels that the environment names, and never a word of what their URLs hold."""

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from urllib.parse import parse_qsl, unquote, urlsplit

from uuid_pipeline.errors import UsageError

URLS_VARIABLE = "UUID_PIPELINE_NOTIFY_URLS"
SHOWN = 300


@dataclass(frozen=True)
class Message:
    """``body`` is Markdown; Apprise turns it into what a channel takes."""

    subject: str
    body: str


@dataclass(frozen=True)
class Delivery:
    """One channel, by its place in the variable and its scheme; ``fault`` is None when it took the message."""

    channel: str
    fault: str | None


def urls(variable: str = URLS_VARIABLE, environment: Mapping[str, str] | None = None) -> list[str]:
    """The Apprise URLs of a variable, apart by blanks or commas. Raises UsageError when it holds none."""
    text = (os.environ if environment is None else environment).get(variable, "")
    # A comma also stands inside URLs (several recipients): it parts two only before a scheme.
    found = [url for url in re.split(r"\s+|,\s*(?=[a-zA-Z][a-zA-Z0-9+.-]*://)", text.strip()) if url]
    if not found:
        raise UsageError(
            f"{variable} names no channel. Set it to one or more Apprise URLs (mailtos://…, slack://…, json://…), "
            "apart by blanks: https://appriseit.com/services/"
        )
    return found


def send(message: Message, channels: Iterable[str]) -> list[Delivery]:
    """Send a message to each channel, one after the other; what a channel answers is told without its secrets."""
    return [_send(message, url, number) for number, url in enumerate(channels, 1)]


def _send(message: Message, url: str, number: int) -> Delivery:
    scheme = url.partition("://")[0]
    channel = f"channel {number} ({scheme if re.fullmatch(r'[a-zA-Z0-9+.-]{1,30}', scheme) else 'unreadable'})"
    import apprise  # here, since it knows a hundred services and most commands send nothing

    sender = apprise.Apprise()
    with apprise.LogCapture(level=apprise.logging.WARNING, fmt="%(message)s") as said:  # type: ignore[no-untyped-call]
        if not sender.add(url):
            return Delivery(channel, "Apprise knows no such URL")
        try:
            taken = sender.notify(title=message.subject, body=message.body, body_format=apprise.NotifyFormat.MARKDOWN)
        except TypeError as error:  # what Apprise raises for a message that no plugin can take
            return Delivery(channel, _clean(str(error), url))
        reason = _clean(" ".join(said.getvalue().split()), url)
    return Delivery(channel, None if taken else reason or "it did not take the message")


def _clean(text: str, url: str) -> str:
    """A reason without any part of the URL but its scheme: hosts and paths are tokens with many services."""
    parts = urlsplit(url)
    raw = [url, parts.netloc, parts.hostname or "", parts.username or "", parts.password or "", parts.path]
    raw += parts.path.split("/") + [value for pair in parse_qsl(parts.query) for value in pair]
    raw += re.split(r"[@:/?&=,]", url.partition("://")[2])
    secrets = {spelled for part in raw for spelled in (part, unquote(part)) if len(spelled) >= 3}
    for secret in sorted(secrets, key=len, reverse=True):
        text = re.sub(re.escape(secret), "***", text, flags=re.IGNORECASE)
    return text[:SHOWN]
