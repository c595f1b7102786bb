"""How each gate is evaluated, by name: filled by the stages, followed also where no Dagster runs (a rehearsal)."""

from collections.abc import Callable
from dataclasses import dataclass, field

from sqlalchemy import Connection

from uuid_pipeline.engine import ledger
from uuid_pipeline.engine.gates import GateResult
from uuid_pipeline.engine.store import Store

Evaluate = Callable[[Connection, Store, ledger.Assessment], GateResult]
EvaluateWave = Callable[[Connection, Store, ledger.Wave], GateResult]
# The run's id last: what several gates need of the whole store is read once a run.
EvaluateWhole = Callable[[Connection, Store, ledger.Execution, str], GateResult]


@dataclass(frozen=True)
class Evaluators:
    """``planning`` by (stage, gate); the gates of a wave and of the whole store by name."""

    planning: dict[tuple[str, str], Evaluate] = field(default_factory=dict)
    wave: dict[str, EvaluateWave] = field(default_factory=dict)
    whole: dict[str, EvaluateWhole] = field(default_factory=dict)
