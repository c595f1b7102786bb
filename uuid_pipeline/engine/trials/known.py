"""The approaches that are tried, in the order in which they are shown."""

from uuid_pipeline.engine.trials.approaches import Approach
from uuid_pipeline.engine.trials.cascade import CASCADE
from uuid_pipeline.engine.trials.children_first import CHILDREN_FIRST
from uuid_pipeline.engine.trials.copy_then_delete import COPY_THEN_DELETE
from uuid_pipeline.engine.trials.deferral import DEFERRAL
from uuid_pipeline.engine.trials.one_statement import ONE_STATEMENT

KNOWN: tuple[Approach, ...] = (CHILDREN_FIRST, COPY_THEN_DELETE, CASCADE, DEFERRAL, ONE_STATEMENT)
