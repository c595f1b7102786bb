"""The risks of a plan, each computed from what was found: one rule a risk, each a pure function of the findings."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from uuid_pipeline.engine.altered import vector_indexes
from uuid_pipeline.engine.plans.risk_findings import Findings, Trigger

Level = Literal["low", "medium", "high"]
_WEIGHT: dict[Level, int] = {"low": 1, "medium": 2, "high": 3}
MANY_ROWS, SOME_ROWS = 100_000, 10_000
LARGE, SIZEABLE = 100_000_000, 10_000_000  # bytes that each batch would read
SHOWN = 5


@dataclass(frozen=True)
class Risk:
    """``finding`` is a sentence with the figure that it comes from; ``rule`` names the function that found it."""

    rule: str
    finding: str
    probability: Level
    impact: Level
    mitigation: str
    contingency: str

    @property
    def weight(self) -> int:
        return _WEIGHT[self.probability] * _WEIGHT[self.impact]


Rule = Callable[[Findings], Iterator[Risk]]
ROLL_BACK = "uuid-pipeline rollback --all gives every row its old id again"


def unindexed_reference(found: Findings) -> Iterator[Risk]:
    for table in found.unindexed:
        impact: Level = "high" if table.bytes >= LARGE else "medium" if table.bytes >= SIZEABLE else "low"
        yield Risk(
            "unindexed_reference",
            f"{table.table}: no index on {', '.join(table.columns)}; every batch scans the table",
            "high", impact,
            f"an index on {table.columns[0]}, made CONCURRENTLY, before approving ({table.bytes / 1e6:.1f} MB)",
            "uuid-pipeline pause, make the index, uuid-pipeline resume: batches that are done stay done",
        )  # fmt: skip


def unwitnessed(found: Findings) -> Iterator[Risk]:
    if not found.witnesses:
        yield Risk(
            "unwitnessed", "the rule is not witnessed: no id that the application made itself confirms it",
            "medium", "high",
            "print one id in the application, put it into the spec under witnesses, and plan again",
            f"{ROLL_BACK}; correct namespace or identity, and plan again",
        )  # fmt: skip


def fired_trigger(found: Findings) -> Iterator[Risk]:
    if found.fired:
        yield Risk(
            "fired_trigger", f"{_named(found.fired)} fire in every batch: {_deeds(found.fired)}",
            "medium", "high" if _reaches_out(found.fired) else "medium",
            "let one document move and look at what they wrote; triggers: {NAME: silence} in the spec keeps one out",
            "they fire in the rollback too, and what they write is not undone by it (nor what they count): clean it "
            "by hand",
        )  # fmt: skip


def silenced_trigger(found: Findings) -> Iterator[Risk]:
    reaching = tuple(trigger for trigger in found.silenced if _reaches_out((trigger,)))
    if reaching:
        yield Risk(
            "silenced_trigger",
            f"{_named(reaching)} are kept silent, and what they would have told others is not told: {_deeds(reaching)}",
            "high", "medium",
            "tell the readers of that table or channel, or set fire in the spec",
            "uuid-pipeline export after the run: old and new id of every row, to be replayed there",
        )  # fmt: skip


def merged_rows(found: Findings) -> Iterator[Risk]:
    if found.merges:
        counted = ", ".join(f"{count} {name}" for name, count in found.merges)
        yield Risk(
            "merged_rows", f"duplicates are merged: {counted} rows leave their tables for the archives in the ledger",
            "low", "medium",
            "read the clusters in the plan, with the row that stays; on_duplicate: block leaves the choice to people",
            "uuid-pipeline rollback --all restores every archived row; until drop-ledger the archives can be read",
        )  # fmt: skip


def archived_without_counterpart(found: Findings) -> Iterator[Risk]:
    if found.without_counterpart:
        counted = ", ".join(f"{count} {name}" for name, count in found.without_counterpart)
        yield Risk(
            "archived_without_counterpart",
            f"{counted} rows are archived and nothing takes their place: a writer that still uses their old id gets "
            "a foreign key error or a unique error, since no alias can lead it anywhere",
            "medium", "medium",
            "pause the workers that re-embed or re-chunk these documents while the wave runs",
            "repeat the writer's job from the document, or: uuid-pipeline rollback --wave NAME",
        )  # fmt: skip


def no_backup(found: Findings) -> Iterator[Risk]:
    if found.moves and found.backup == "none":
        yield Risk(
            "no_backup",
            _stated(found, "the spec asks for no backup: what goes wrong can be undone by the ledger alone"),
            "low", "high",
            "set backup: dump, or attested with your provider's snapshot, and plan again",
            f"{ROLL_BACK}, from the ledger in this same database",
        )  # fmt: skip


def _stated(found: Findings, otherwise: str) -> str:
    """What the plan itself says of its backup: one risk is not to be shown in two wordings."""
    return next((finding for finding in found.stated if "backup" in finding), otherwise)


def attested_backup(found: Findings) -> Iterator[Risk]:
    if found.moves and found.backup == "attested":
        yield Risk(
            "attested_backup",
            _stated(found, "the backup is attested, not restored by this tool: that it can be restored is unproven"),
            "low", "high",
            "restore the provider's snapshot once beside the store before approving, and time it",
            f"{ROLL_BACK}; the snapshot is for what a rollback cannot reach",
        )  # fmt: skip


def long_transaction(found: Findings) -> Iterator[Risk]:
    if found.long_transaction:
        yield Risk(
            "long_transaction", f"at planning: {found.long_transaction}; batches wait for rows that it locked",
            "medium", "medium",
            "end it before the first wave; throttle: {long_transaction_seconds: N} in the spec waits for such ones",
            "locked documents are set aside and taken up again: uuid-pipeline run",
        )  # fmt: skip


def index_rebuilt(found: Findings) -> Iterator[Risk]:
    for index in found.rebuilt:
        yield Risk(
            "index_rebuilt", vector_indexes.scan_risk(index.index, index.table, index.waves, index.rows),
            "high", "high" if index.rows >= MANY_ROWS else "medium",
            "run these waves when few people search; raise maintenance_work_mem",
            "the next run builds an index that a crashed one left out; uuid-pipeline status names it",
        )  # fmt: skip


def row_security(found: Findings) -> Iterator[Risk]:
    if found.row_security:
        yield Risk(
            "row_security",
            f"row-level security is on for {_first(found.row_security)}: this role sees every row, your users do not",
            "low", "medium",
            "look at a document of the canary wave as its owner, by the application, before the next wave",
            f"{ROLL_BACK}",
        )  # fmt: skip


def policy_by_id(found: Findings) -> Iterator[Risk]:
    if found.policies and found.moves:
        named = _first([f"{policy} on {table}" for policy, table in found.policies])
        yield Risk(
            "policy_by_id",
            f"policies look rows up by ids that change ({named}): a write that waited for its batch is judged by the "
            "rows as they were when its statement began, and may be refused with 42501 though its user has the right",
            "medium" if found.others_at_work else "low", "medium",
            "let the application try such a write once more; begun again, it passes",
            "uuid-pipeline pause ends after the current batch",
        )  # fmt: skip


def statement_under_way(found: Findings) -> Iterator[Risk]:
    if found.others_at_work and found.moves:
        yield Risk(
            "statement_under_way",
            "others are at work in this database: an UPDATE or DELETE that finds rows by joining them to a moved one "
            "(UPDATE ... FROM, IN or EXISTS (SELECT ...)) and waits for their batch finds none, without an error",
            "low", "medium",
            "let writers look at the number of rows they wrote and try again, or lock the row joined to in a statement "
            "before; or run when nobody writes so",
            "the next statement finds them: nothing of the store is wrong",
        )  # fmt: skip


def origin_tier(found: Findings) -> Iterator[Risk]:
    if found.tier == "O" and found.silenced:
        tables = sorted({trigger.table for trigger in found.silenced})
        yield Risk(
            "origin_tier",
            f"tier O ({found.tier_reason}): {len(found.silenced)} triggers of {_first(tables)} are altered while waves "
            "run, each under a short lock of its table; foreign keys are checked row by row",
            "medium", "low",
            "a role that may set session_replication_role needs none of it",
            "a later run puts back what a crashed one left altered; uuid-pipeline status names it",
        )  # fmt: skip


def unreadable_signal(found: Findings) -> Iterator[Risk]:
    for name, reason in found.unreadable:
        yield Risk(
            "unreadable_signal", f"the health signal {name} cannot be read here ({reason}): nothing slows down for it",
            "medium", "medium",
            "grant what the reason names, or watch that figure yourself while the waves run",
            "uuid-pipeline pause ends after the current batch",
        )  # fmt: skip


def unthrottled(found: Findings) -> Iterator[Risk]:
    if found.moves >= SOME_ROWS and not found.throttled:
        yield Risk(
            "unthrottled",
            f"no health signal has a limit in the spec, and {found.moves} ids change: nothing slows it down",
            "medium", "medium",
            "set throttle in the spec: replication_lag_seconds, lock_waits, or a query with its limit",
            "uuid-pipeline pause ends after the current batch",
        )  # fmt: skip


def derived_value(found: Findings) -> Iterator[Risk]:
    if found.derived:
        rows = sum(count for _, count, _ in found.derived)
        named = _first([f"{column} ({kind})" for column, _, kind in found.derived])
        yield Risk(
            "derived_value", f"{rows} values are made from old ids and stay as they are: {named}",
            "high", "low",
            "make sure that the application reads these values and does not make them anew from the id",
            "uuid-pipeline export gives old and new id of every row, to find or to rename what they point at",
        )  # fmt: skip


def unsearched_column(found: Findings) -> Iterator[Risk]:
    if found.unsearched:
        yield Risk(
            "unsearched_column", f"old ids could stand unseen in {_first(found.unsearched)}",
            "low", "medium",
            "look into them; declare what holds ids under soft_references, or name it under ignore_references",
            "uuid-pipeline export, and a statement of your own for that column",
        )  # fmt: skip


def kept_id(found: Findings) -> Iterator[Risk]:
    if found.kept_ids and found.moves:
        named = _first([f"{column} ({reason})" for column, reason in found.kept_ids])
        yield Risk(
            "kept_id", f"the spec leaves ids as they are in {named}",
            "low", "low",
            "readers that join by these ids ask uuid_pipeline.resolve_ENTITY until finalize",
            "uuid-pipeline export before finalize: the map is what leads from them to the rows",
        )  # fmt: skip


def quarantined_row(found: Findings) -> Iterator[Risk]:
    if found.quarantined:
        yield Risk(
            "quarantined_row",
            f"{found.quarantined} documents are quarantined, since their natural key is missing or malformed: they "
            "keep their ids and stay as findable as they are",
            "high", "high" if 10 * found.quarantined > found.documents else "medium",
            "uuid-pipeline inventory names them with the reason; mend them in the application, and plan again",
            "a later plan moves them",
        )  # fmt: skip


def remembered_id(found: Findings) -> Iterator[Risk]:
    if found.moves and found.changing_users:
        of_all = f" of {found.users}" if found.users is not None else ""
        wide = found.users is not None and 2 * found.changing_users > found.users
        yield Risk(
            "remembered_id",
            f"{found.changing_users}{of_all} users have documents whose id changes: a link or client that remembers an "
            "old id and looks it up finds nothing, unless it asks uuid_pipeline.resolve_ENTITY",
            "medium", "high" if wide else "medium",
            "send the notices (uuid-pipeline notices --kind before); let look-ups by id ask the function",
            f"{ROLL_BACK}; old ids go on working in writes until finalize",
        )  # fmt: skip


def without_chunks(found: Findings) -> Iterator[Risk]:
    if found.with_children is not None and found.with_children < found.documents:
        without = found.documents - found.with_children
        yield Risk(
            "without_chunks", f"{without} of {found.documents} documents have no chunks: users expect them to be found "
            "again, and no id makes them findable",
            "high", "high" if 10 * without > found.documents else "medium",
            "tell their owners (uuid-pipeline notices names each), or have the application process them again",
            "the same, after the migration: it does not depend on it",
        )  # fmt: skip


def unmeasured_speed(found: Findings) -> Iterator[Risk]:
    if found.moves >= SOME_ROWS and not found.speed_measured:
        yield Risk(
            "unmeasured_speed", f"the time for {found.moves} ids is estimated by a speed that was measured elsewhere",
            "medium", "medium",
            "let the canary wave run alone and scale its time (uuid-pipeline migrate --wave canary)",
            "uuid-pipeline pause between batches; the rest can wait for another window",
        )  # fmt: skip


def left_behind(found: Findings) -> Iterator[Risk]:
    if found.left:
        yield Risk(
            "left_behind", f"the approach of the spec covers {found.covers}: {found.left} documents that are due keep "
            "their ids",
            "high", "high" if 2 * found.left > found.documents else "medium",
            "set strategy.approach: full for the rest once the first waves have proven themselves",
            "plan again: what is left is due then",
        )  # fmt: skip


def no_sweep(found: Findings) -> Iterator[Risk]:
    if found.moves and not found.sweep_passes:
        yield Risk(
            "no_sweep", "the spec wants no sweep: documents that arrive while the waves run keep their ids",
            "medium", "medium",
            "set sweep: {max_passes: 2}, and see that the application makes the right ids before the first wave",
            "plan again after the run: what arrived is due then",
        )  # fmt: skip


RULES: tuple[Rule, ...] = (
    no_backup, attested_backup, unwitnessed, archived_without_counterpart, merged_rows, unindexed_reference,
    index_rebuilt, fired_trigger, silenced_trigger, long_transaction, remembered_id, without_chunks, quarantined_row,
    left_behind, no_sweep, unmeasured_speed, unthrottled, unreadable_signal, origin_tier, row_security, policy_by_id,
    statement_under_way, derived_value, unsearched_column, kept_id,
)  # fmt: skip


def register(found: Findings) -> list[Risk]:
    """Every risk of a plan, the heaviest first; what the plan states and no rule knows comes along as it is."""
    judged = [risk for rule in RULES for risk in rule(found)]
    known = {risk.finding for risk in judged}
    stated = [
        Risk("stated", finding, "medium", "medium", "weigh it before approving", ROLL_BACK)
        for finding in found.stated
        if finding not in known
    ]
    return sorted([*judged, *stated], key=lambda risk: -risk.weight)


_OUTWARD = ("writes to", "notifies", "runs SQL", "calls other", "is written in")


def _reaches_out(triggers: tuple[Trigger, ...]) -> bool:
    """Whether any of them does more than change the row itself, as far as its source tells."""
    return any(mark in trigger.does for trigger in triggers for mark in _OUTWARD)


def _named(triggers: tuple[Trigger, ...]) -> str:
    return "triggers " + _first([f"{trigger.name} on {trigger.table}" for trigger in triggers])


def _deeds(triggers: tuple[Trigger, ...]) -> str:
    return "; ".join(dict.fromkeys(trigger.does for trigger in triggers))


def _first(names: tuple[str, ...] | list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
