"""Gates: checks that must have passed, in this very attempt, before the next stage may write."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from sqlalchemy import Connection

from uuid_pipeline.engine import sql
from uuid_pipeline.errors import RefusedError

# Every stage with its gates, in the order in which the stages run. What stands here is what binds.
GATES: dict[str, tuple[str, ...]] = {
    "store_profile": ("witnesses_agree", "every_row_visible", "references_known", "nothing_unsupported"),
    "document_inventory": ("natural_keys_valid_or_quarantined", "no_orphans", "counts_agree"),
    "duplicate_clusters": ("each_cluster_decided", "never_across_users", "conflicts_resolvable"),
    "id_mapping": (
        "witnesses_agree",
        "one_target_per_natural_key",
        "no_collision",
        "recomputed_independently",
    ),
    "store_backup": ("backup_as_asked",),
    "migration_plan": ("waves_cover_each_document_once", "rehearsal_passed"),
    "migrated_documents": (
        "conservation",
        "no_dangling_reference",
        "ids_exact",
        "schema_unchanged",
        "documents_retrievable",
    ),
    "validation_report": (
        "whole_conservation",
        "whole_no_dangling_reference",
        "whole_ids_exact",
        "whole_schema_unchanged",
        "timestamps_untouched",
        "whole_documents_retrievable",
        "next_step_safe",
    ),
}
PLANNING_STAGES = (
    "store_profile",
    "document_inventory",
    "duplicate_clusters",
    "id_mapping",
    "store_backup",
    "migration_plan",
)
WAVE_STAGE = "migrated_documents"
VALIDATION_STAGE = "validation_report"


def before(stage: str) -> tuple[str, ...]:
    """The planning stages that come before one of them."""
    return PLANNING_STAGES[: PLANNING_STAGES.index(stage)]


@dataclass(frozen=True)
class GateResult:
    """What a gate found; ``remedy`` is said only when it did not pass."""

    gate: str
    passed: bool
    finding: str
    remedy: str = ""
    figures: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, gate: str, passed: bool, finding: str, remedy: str, figures: Mapping[str, float] | None = None) -> Self:
        return cls(gate, bool(passed), finding, "" if passed else remedy, figures or {})


@dataclass(frozen=True)
class Scope:
    """Whose gates: those of an assessment (before approval) or of an execution (after it), maybe of one wave."""

    assessment: int | None = None
    execution: str | None = None
    wave: str | None = None

    @property
    def values(self) -> dict[str, Any]:
        return {"assessment": self.assessment, "execution": self.execution, "wave": self.wave}

    def __str__(self) -> str:
        if self.execution is None:
            return f"assessment {self.assessment}"
        return f"execution {self.execution}" + (f", wave {self.wave}" if self.wave else "")


def record(connection: Connection, scope: Scope, stage: str, result: GateResult, run_id: str) -> None:
    """Write a gate's result to the ledger; the newest one of a scope counts."""
    sql.execute(
        connection,
        """INSERT INTO uuid_pipeline.gates
               (assessment_no, execution_id, wave, stage, gate, passed, finding, remedy, figures, run_id)
           VALUES (%(assessment)s, %(execution)s, %(wave)s, %(stage)s, %(gate)s, %(passed)s, %(finding)s, %(remedy)s,
                   %(figures)s::jsonb, %(run_id)s)""",
        {
            **scope.values,
            "stage": stage,
            "gate": result.gate,
            "passed": result.passed,
            "finding": result.finding,
            "remedy": result.remedy,
            "figures": json.dumps(dict(result.figures)),
            "run_id": run_id,
        },
    )


# Written out with IS NULL, since no index serves IS NOT DISTINCT FROM.
_LATEST = """
SELECT DISTINCT ON (stage, gate) stage, gate, passed, finding, remedy, figures
FROM uuid_pipeline.gates
WHERE (assessment_no = %(assessment)s OR (%(assessment)s::int IS NULL AND assessment_no IS NULL))
  AND (execution_id = %(execution)s OR (%(execution)s::text IS NULL AND execution_id IS NULL))
  AND (wave = %(wave)s OR (%(wave)s::text IS NULL AND wave IS NULL))
ORDER BY stage, gate, gate_no DESC
"""
_LATEST_OF_WAVES = """
SELECT DISTINCT ON (wave, stage, gate) wave, stage, gate, passed, finding, remedy, figures
FROM uuid_pipeline.gates
WHERE assessment_no IS NULL AND execution_id = %(execution)s AND wave = ANY(%(waves)s)
ORDER BY wave, stage, gate, gate_no DESC
"""

Latest = dict[tuple[str, str], GateResult]


def latest(connection: Connection, scope: Scope) -> Latest:
    """The newest result of each (stage, gate) in exactly this scope."""
    return {(row.stage, row.gate): _result(row) for row in sql.rows(connection, _LATEST, scope.values)}


def _result(row: Any) -> GateResult:
    return GateResult(row.gate, row.passed, row.finding, row.remedy, row.figures)


def open_gates(connection: Connection, scope: Scope, stages: Iterable[str]) -> list[str]:
    """Each gate of ``stages`` that has not passed in this scope, in a sentence with its remedy."""
    return _not_passed(latest(connection, scope), scope, stages)


def open_gates_of_waves(connection: Connection, execution: str, waves: Sequence[str]) -> list[str]:
    """As :func:`open_gates`, of these waves of an execution, which may be hundreds: asked at once."""
    found: dict[str, Latest] = {wave: {} for wave in waves}
    for row in sql.rows(connection, _LATEST_OF_WAVES, {"execution": execution, "waves": list(waves)}):
        found[row.wave][row.stage, row.gate] = _result(row)
    return [
        sentence
        for wave, of_wave in found.items()
        for sentence in _not_passed(of_wave, Scope(execution=execution, wave=wave), [WAVE_STAGE])
    ]


def _not_passed(found: Latest, scope: Scope, stages: Iterable[str]) -> list[str]:
    missing = []
    for stage in stages:
        for gate in GATES[stage]:
            result = found.get((stage, gate))
            if result is None:
                missing.append(f"{stage}.{gate} was not evaluated in {scope}: run the stage with its checks")
            elif not result.passed:
                missing.append(f"{stage}.{gate} did not pass in {scope}: {result.finding}. Remedy: {result.remedy}")
    return missing


def require(connection: Connection, scope: Scope, stages: Iterable[str], before: str) -> None:
    """Raise RefusedError unless every gate of ``stages`` has passed in this scope."""
    _require_none(open_gates(connection, scope, stages), before)


def require_of_waves(connection: Connection, execution: str, waves: Sequence[str], before: str) -> None:
    """Raise RefusedError unless every gate of these waves has passed."""
    _require_none(open_gates_of_waves(connection, execution, waves), before)


def _require_none(missing: Sequence[str], before: str) -> None:
    if missing:
        raise RefusedError("\n".join([f"Refused: {before} needs gates that have not passed.", *missing]))


def inherit(connection: Connection, assessment: int, execution: str) -> None:
    """At approval, make the plan's own gates those of the execution."""
    sql.execute(
        connection,
        """INSERT INTO uuid_pipeline.gates (execution_id, stage, gate, passed, finding, remedy, figures, run_id)
           SELECT DISTINCT ON (stage, gate) %(execution)s, stage, gate, passed, finding, remedy, figures, run_id
           FROM uuid_pipeline.gates WHERE assessment_no = %(assessment)s ORDER BY stage, gate, gate_no DESC""",
        {"assessment": assessment, "execution": execution},
    )
