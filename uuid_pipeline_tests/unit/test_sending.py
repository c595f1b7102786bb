"""Sending: to receivers that are there, and what is said of those that are not."""

import email
import email.policy

import pytest

from uuid_pipeline.errors import UsageError
from uuid_pipeline.operations import sending
from uuid_pipeline.operations.sending import Message
from uuid_pipeline_tests import receivers

MESSAGE = Message("Our application: planned repair", "# Planned repair\n\n- 3 documents")
SECRET, TOKEN = "pl4nted-s3cret", "T0KENt0ken"


def test_a_webhook_gets_subject_and_body() -> None:
    with receivers.webhook() as hook:
        (delivery,) = sending.send(MESSAGE, [f"json://127.0.0.1:{hook.port}/{TOKEN}"])

    assert (delivery.channel, delivery.fault) == ("channel 1 (json)", None)
    assert hook.paths == [f"/{TOKEN}"]
    assert hook.bodies[0]["title"] == MESSAGE.subject
    assert "3 documents" in hook.bodies[0]["message"]


def test_a_mail_server_gets_a_mail() -> None:
    with receivers.smtp() as mail:
        url = f"mailto://127.0.0.1:{mail.port}/?from=pipeline@example.org&to=support@example.org&mode=insecure"
        (delivery,) = sending.send(MESSAGE, [url])

    assert delivery.fault is None
    received = email.message_from_string(mail.bodies[0], policy=email.policy.default)
    assert received["Subject"] == MESSAGE.subject
    assert "support@example.org" in received["To"]
    body = received.get_body(("html", "plain"))
    assert body is not None
    assert "3 documents" in body.get_content()


def test_one_channel_that_fails_keeps_no_other_from_its_message_and_tells_no_secret() -> None:
    with receivers.webhook(500) as broken, receivers.webhook() as hook:
        urls = [
            f"json://robot:{SECRET}@127.0.0.1:{broken.port}/{TOKEN}?key={SECRET}",
            f"json://robot:{SECRET}@127.0.0.1:1/{TOKEN}",
            f"nosuchservice://{TOKEN}/{SECRET}",
            f"json://127.0.0.1:{hook.port}/",
        ]
        deliveries = sending.send(MESSAGE, urls)

    assert [delivery.fault is None for delivery in deliveries] == [False, False, False, True]
    assert [delivery.channel for delivery in deliveries] == [
        "channel 1 (json)", "channel 2 (json)", "channel 3 (nosuchservice)", "channel 4 (json)",
    ]  # fmt: skip
    assert len(hook.bodies) == 1
    assert "500" in str(deliveries[0].fault)
    said = repr(deliveries)
    for hidden in (SECRET, TOKEN, "robot", "127.0.0.1"):
        assert hidden not in said


def test_urls_come_from_the_environment_apart_by_blanks_or_commas() -> None:
    text = "mailto://a:b@example.org?to=x@y.org,z@y.org, json://127.0.0.1:9/\n slack://A/B/C"

    assert sending.urls("X", {"X": text}) == [
        "mailto://a:b@example.org?to=x@y.org,z@y.org", "json://127.0.0.1:9/", "slack://A/B/C",
    ]  # fmt: skip


@pytest.mark.parametrize("environment", [{}, {"X": "  "}])
def test_no_channel_is_said_with_the_variable_to_set(environment: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="X names no channel"):
        sending.urls("X", environment)
