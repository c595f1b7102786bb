"""What is validated is the newest execution that stands; what has gone back leaves it in sight."""

import pytest
from sqlalchemy import Engine

from uuid_pipeline.engine import validation
from uuid_pipeline.errors import RefusedError
from uuid_pipeline_tests.integration import cycle
from uuid_pipeline_tests.integration.test_declared_since import docs, old_ids, spec_of

__all__ = ["docs"]


def test_an_execution_is_validated_again_once_the_newer_one_is_back(docs: Engine) -> None:
    older = cycle.newest_execution(docs)
    newer = cycle.run_all(docs, spec_of(2))
    cycle.undo(docs, "canary")
    cycle.undo(docs, "remaining")
    assert cycle.newest_execution(docs).execution_id == newer.execution_id

    with docs.begin() as connection:
        assert validation.subject(connection) == older
    cycle.assert_green(cycle.validate(docs))

    put_back = "UPDATE app.docs SET id = %(old)s WHERE id = (SELECT new_id FROM uuid_pipeline.id_map_document_{} {})"
    which = f"WHERE old_id = '{old_ids()[0]}'"
    cycle.run_sql(docs, 'DROP TRIGGER "00_uuid_pipeline_alias_ids" ON app.docs')
    cycle.run_sql(docs, put_back.format(older.assessment_no, which), old=old_ids()[0])
    assert "whole_ids_exact" in {result.gate for result in cycle.validate(docs) if not result.passed}


def test_what_is_partly_back_above_another_is_told_with_what_takes_it_back_alone(docs: Engine) -> None:
    older = cycle.newest_execution(docs)
    newer = cycle.run_all(docs, spec_of(2))
    first, second = cycle.waves_of(docs, newer)
    cycle.undo(docs, second.wave)

    with docs.begin() as connection, pytest.raises(RefusedError) as refused:
        validation.subject(connection)

    assert f"Execution {newer.execution_id} was rolled back in part" in refused.value.message
    remedy = f"validate execution {older.execution_id}: uuid-pipeline rollback --wave {first.wave}. "
    assert remedy in refused.value.message
    cycle.undo(docs, first.wave)
    cycle.assert_green(cycle.validate(docs))


def test_where_all_is_back_nothing_is_validated(docs: Engine) -> None:
    cycle.run_all(docs, spec_of(2))
    cycle.undo(docs)

    with docs.begin() as connection, pytest.raises(RefusedError, match="Nothing is migrated that could be validated"):
        validation.subject(connection)
