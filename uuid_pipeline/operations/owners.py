"""Who answers for the store, as the spec says it: shown at every asset."""

import dagster as dg

from uuid_pipeline.errors import UsageError
from uuid_pipeline.settings import read_settings
from uuid_pipeline.spec import load_spec


def owned(definitions: dg.Definitions) -> dg.Definitions:
    """The definitions with the spec's owners. A spec that cannot be read is every stage's error to report, not ours."""
    try:
        owners = load_spec(read_settings().spec).owners
    except UsageError:
        owners = []
    return definitions.map_asset_specs(func=lambda spec: spec.replace_attributes(owners=owners))
