"""Who answers for the store, as the spec says it: shown at every asset."""

from collections.abc import Iterable, Sequence

import dagster as dg

from uuid_pipeline.errors import UsageError
from uuid_pipeline.settings import read_settings
from uuid_pipeline.spec import load_spec


def owned(assets: Iterable[dg.AssetsDefinition | dg.AssetSpec]) -> Sequence[dg.AssetsDefinition | dg.AssetSpec]:
    """The assets with the spec's owners. A spec that cannot be read is every stage's error to report, not ours."""
    try:
        owners = load_spec(read_settings().spec).owners
    except UsageError:
        owners = []
    return dg.map_asset_specs(lambda spec: spec.replace_attributes(owners=owners), assets)
