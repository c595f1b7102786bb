"""What is told of a step that takes long, by Dagster's own events of a run in this process."""

import time
import uuid

import dagster as dg
import pytest

from uuid_pipeline.engine.gates import WAVE_STAGE
from uuid_pipeline.operations import long_steps


@dg.op
def taking_its_time() -> None:
    time.sleep(1.6)


@dg.op(ins={"after": dg.In(dg.Nothing)})
def quick() -> None:
    pass


@dg.op(name=WAVE_STAGE, ins={"after": dg.In(dg.Nothing)})
def moving() -> None:
    time.sleep(1.6)


@dg.job
def three_steps() -> None:
    moving(quick(taking_its_time()))


def test_a_step_is_named_once_it_takes_long_and_again_but_one_that_tells_by_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(long_steps, "FIRST_SECONDS", 0.1)
    monkeypatch.setattr(long_steps, "AGAIN_SECONDS", 0.4)
    said: list[str] = []
    run_id = str(uuid.uuid4())

    with dg.DagsterInstance.ephemeral() as instance, long_steps.told(instance, run_id, said.append):
        assert three_steps.execute_in_process(instance=instance, run_id=run_id).success

    assert len(said) >= 2
    assert all(line.startswith("taking its time: under way for ") for line in said)
