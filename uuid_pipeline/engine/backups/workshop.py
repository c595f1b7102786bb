"""Where backups and copies are made: directories, programs, servers beside the store's own."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Workshop:
    """What making a backup, or a copy to try things in, needs of its surroundings.

    ``directory`` keeps the dumps; ``tools`` are further places of client programs; ``fallback`` starts a server that
    can hold a scratch database and gives its URL; ``direct_url`` leads past a pooler.
    """

    directory: Path
    tools: Sequence[Path] = ()
    fallback: Callable[[], str] | None = None
    direct_url: str | None = None
