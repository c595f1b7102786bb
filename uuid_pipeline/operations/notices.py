"""The job that renders notices for review, and sends them when asked."""

import json
from typing import Literal

import dagster as dg
from pydantic import Field
from sqlalchemy import Engine

from uuid_pipeline.engine import ledger
from uuid_pipeline.engine.plans import notice_facts
from uuid_pipeline.engine.plans.notice_facts import Kind
from uuid_pipeline.engine.store import Store
from uuid_pipeline.errors import RefusedError, UsageError
from uuid_pipeline.operations import sending
from uuid_pipeline.reports import files, notices
from uuid_pipeline.settings import read_settings
from uuid_pipeline.stages.session import StoreResource


class NoticesConfig(dg.Config):
    """``kind``: before, during, after, rollback, or empty for what fits now; ``send_to``: support, stakeholders."""

    kind: Literal["", "before", "during", "after", "rollback"] = ""
    send_to: list[str] = Field(default=[])


@dg.op(description="Render the notices of a plan or an execution, and send those that were asked for.")
def write_notices(context: dg.OpExecutionContext, config: NoticesConfig, store: StoreResource) -> None:
    with store.open() as (engine, bound):
        made = render(engine, bound, config.kind or None)
        context.log.info(f"Notices {made.kind}: {made.directory}")
        context.add_output_metadata(
            {
                "directory": dg.MetadataValue.path(made.directory),
                "users": made.users if made.users is not None else "unknown: the spec names no owner",
                **{audience: dg.MetadataValue.md(notice.md) for audience, notice in made.notices.items()},
            }
        )
        if config.send_to:
            deliver(engine, bound, made, config.send_to)


def render(engine: Engine, store: Store, kind: Kind | None) -> notices.Rendered:
    """Render all notices of a kind, or of the one that fits now."""
    settings = read_settings()
    templates = notices.template_directory(store.spec.notices, settings.spec)
    # One snapshot: what the figures say of a user and of all must agree.
    with engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection, connection.begin():
        chosen = kind or notice_facts.kind_now(connection)
        return notices.write(connection, store, chosen, settings.home, templates)


def deliver(engine: Engine, store: Store, made: notices.Rendered, audiences: list[str]) -> None:
    """Send to each audience's channels and record it. Raises RefusedError when a notice is not true now, or a channel
    did not take it; UsageError when an audience has no channel."""
    channels = {audience: channels_of(store, audience) for audience in audiences}
    if not made.timely:
        raise RefusedError(
            f"Not sent: the notice '{made.kind}' is not true now; the execution is {made.status}. It is rendered for "
            f"review: {made.directory}"
        )
    sent = {
        audience: sending.send(sending.Message(notice.subject, notice.md), channels[audience])
        for audience, notice in made.notices.items()
        if audience in channels
    }
    record = {
        audience: [{"channel": delivery.channel, "fault": delivery.fault} for delivery in deliveries]
        for audience, deliveries in sent.items()
    }
    with engine.begin() as connection:
        ledger.audit(connection, "notices sent", {"kind": made.kind, "plan": made.plan_id, "sent": record})
    files.write(made.directory / "sent.json", json.dumps(record, indent=2) + "\n")
    faults = [
        f"  {audience}: {delivery.channel}: {delivery.fault}"
        for audience, deliveries in sent.items()
        for delivery in deliveries
        if delivery.fault is not None
    ]
    if faults:
        raise RefusedError("\n".join(["Not every channel took the notice:", *faults]))


def channels_of(store: Store, audience: str) -> list[str]:
    """The URLs of an audience. Raises UsageError for users, whose addresses nobody told us, and for unknown ones."""
    if audience not in notices.AUDIENCES:
        raise UsageError(
            f"Notices are sent to {' or '.join(notices.AUDIENCES)}, not to {audience}. Addresses of users are not "
            "known here: users.jsonl is what your own mailer takes."
        )
    variables = {str(name): variable for name, variable in store.spec.notices.send.items()}
    return sending.urls(variables.get(audience, sending.URLS_VARIABLE))


@dg.job(
    name="notices",
    executor_def=dg.in_process_executor,
    description="Render the notices for users, support and stakeholders; send them only when send_to says so.",
)
def notices_job() -> None:
    write_notices()
