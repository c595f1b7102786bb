"""A whole migration and its rollback in one go, on a copy: the stages' own steps and gates, without Dagster."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from sqlalchemy import Connection, Engine

from uuid_pipeline.engine import (
    approval,
    catalog,
    gates,
    inventory,
    ledger,
    mapping,
    migration,
    planning,
    profile,
    rollback,
    validation,
)
from uuid_pipeline.engine.batches.writing import Report, Run
from uuid_pipeline.engine.evaluators import Evaluators
from uuid_pipeline.engine.gates import GateResult, Scope
from uuid_pipeline.engine.plans import approach, speed
from uuid_pipeline.engine.soft_references import references
from uuid_pipeline.engine.store import Store, bind
from uuid_pipeline.errors import RefusedError
from uuid_pipeline.spec import Rehearsal, Spec, Throttle

RUN = "rehearsal"


def spec_of_copy(spec: Spec) -> Spec:
    """The same migration, but nobody waits for a copy: no backup of it, no throttle, no rehearsal before.

    Tables that are ignored may be missing: a copy has only what the role may read.
    """
    ignored = [reference.model_copy(update={"optional": True}) for reference in spec.ignore_references]
    changes = {"backup": "none", "rehearsal": Rehearsal(), "throttle": Throttle(), "ignore_references": ignored}
    return spec.model_copy(update=changes)


class RedGateError(RefusedError):
    """A gate that did not pass ended the run-through; ``failed`` names it."""

    def __init__(self, stage: str, result: GateResult) -> None:
        super().__init__(f"{stage}.{result.gate} did not pass: {result.finding}. Remedy: {result.remedy}")
        self.failed = f"{stage}.{result.gate}"


@dataclass
class RunThrough:
    """One run-through and what it did so far; ``passed`` names each gate that passed."""

    engine: Engine
    spec: Spec
    evaluators: Evaluators
    report: Report
    passed: list[str] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    back: list[Run] = field(default_factory=list)
    tier: str = "unknown"
    documents: int = 0
    ids: int = 0

    @property
    def rows(self) -> int:
        return sum(sum(run.rows.values()) for run in self.runs)

    def forward(self) -> None:
        """Every stage up to a completed execution. Raises RedGateError at the first gate that does not pass."""
        for stage in gates.PLANNING_STAGES:
            _BODIES.get(stage, _nothing)(self)
            self._judge_planning(stage)
        with self.engine.begin() as connection:
            plan = planning.of_assessment(connection, ledger.newest_assessment(connection).assessment_no)
            self.tier, self.documents = plan.content["tier"], sum(wave.documents for wave in plan.waves)
            if plan.nothing_to_do:
                return
            execution = approval.approve(connection, self.store(connection), plan.plan_id)
            waves = ledger.waves(connection, execution.execution_id)
        try:
            for wave in waves:
                self._wave(wave.wave)
        finally:
            with self.engine.begin() as connection:
                self.ids = speed.ids_of(connection, execution.execution_id)
        self._judge_whole(execution)

    def backward(self) -> None:
        """Roll back whatever moved."""
        with self.engine.begin() as connection:
            store, waves = self.store(connection), rollback.choose(connection, None)
        if waves:
            self.back = rollback.roll_back(self.engine, store, waves, RUN, self.report)

    def store(self, connection: Connection) -> Store:
        """The spec, bound to the copy as it is now."""
        return bind(self.spec, catalog.read_catalog(connection, self.spec.schema_name))

    def _judge_planning(self, stage: str) -> None:
        with self.engine.begin() as connection:
            store, assessment = self.store(connection), ledger.newest_assessment(connection)
            scope = Scope(assessment=assessment.assessment_no)
            results = (self.evaluators.planning[stage, gate](connection, store, assessment) for gate in _of(stage))
            failed = self._record(connection, scope, stage, results)
        self._require(stage, failed)

    def _wave(self, name: str) -> None:
        with self.engine.begin() as connection:
            if ledger.wave(connection, name).status == "unneeded":
                return
            store = self.store(connection)
        self.runs.append(migration.run_wave(self.engine, store, name, RUN, self.report))
        with self.engine.begin() as connection:
            store, wave = self.store(connection), ledger.wave(connection, name)
            scope = Scope(execution=wave.execution_id, wave=name)
            results = (self.evaluators.wave[gate](connection, store, wave) for gate in _of(gates.WAVE_STAGE))
            failed = self._record(connection, scope, gates.WAVE_STAGE, results)
        self._require(gates.WAVE_STAGE, failed)

    def _judge_whole(self, execution: ledger.Execution) -> None:
        stage = gates.VALIDATION_STAGE
        with self.engine.begin() as connection:
            store, scope = self.store(connection), Scope(execution=execution.execution_id)
            results = (self.evaluators.whole[gate](connection, store, execution, RUN) for gate in _of(stage))
            failed = self._record(connection, scope, stage, results)
            complete = validation.settle(connection, execution)
        self._require(stage, failed)
        if not complete:
            raise RefusedError("Every gate passed, and yet the rehearsal's execution could not be completed.")

    def _record(
        self, connection: Connection, scope: Scope, stage: str, results: Iterable[GateResult]
    ) -> GateResult | None:
        """The first red one, if any; each is recorded, as the stages do."""
        failed = None
        for result in results:
            gates.record(connection, scope, stage, result, RUN)
            if result.passed:
                self.passed.append(f"{stage}.{result.gate}")
            failed = failed or (None if result.passed else result)
        return failed

    @staticmethod
    def _require(stage: str, failed: GateResult | None) -> None:
        if failed is not None:
            raise RedGateError(stage, failed)


def _of(stage: str) -> tuple[str, ...]:
    return gates.GATES[stage]


def _profile(through: RunThrough) -> None:
    with through.engine.begin() as connection:
        store = through.store(connection)
        profile.require_access(connection, store)
        ledger.create(connection, store)
        searched = references.as_data(references.search(connection, store))
        found = profile.describe(connection, store) | {"search": searched}
        digest = catalog.digest(catalog.snapshot(connection, store.catalog))
        ledger.begin_assessment(connection, RUN, store.spec.digest, digest, found)


def _inventory(through: RunThrough) -> None:
    with (
        through.engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection,
        connection.begin(),
    ):
        number = ledger.newest_assessment(connection).assessment_no
        inventory.take(connection, through.store(connection), number)


def _map(through: RunThrough) -> None:
    with through.engine.begin() as connection:
        number = ledger.newest_assessment(connection).assessment_no
        kinds = approach.wave_kinds(through.spec.strategy)
        mapping.build(connection, through.store(connection), number, kinds=kinds)


def _plan(through: RunThrough) -> None:
    with through.engine.begin() as connection:
        store, assessment = through.store(connection), ledger.newest_assessment(connection)
        planning.make(connection, store, assessment, inventory.summarize(connection, store, assessment))


def _nothing(_through: RunThrough) -> None:
    """A stage that only looks, or (the backup) that a copy has no need of."""


# What each stage does before its gates are asked.
_BODIES: dict[str, Callable[[RunThrough], None]] = {
    "store_profile": _profile,
    "document_inventory": _inventory,
    "id_mapping": _map,
    "migration_plan": _plan,
}
