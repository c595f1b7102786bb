"""The incident a week later: its unique index missing, and twelve files uploaded once more through the mended code.

50 documents under 38 natural keys. 38 are the incident's, under random ids; 12 are re-uploads that already have
their target id, each the twin of a random one. What the twins' chunks have in common differs from pair to pair.
"""

import random
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import sqlalchemy

from uuid_pipeline.demo import incident
from uuid_pipeline.demo.uploads import NAMESPACE, ChunkSet, Upload, uuid4

_THREE = ChunkSet("1", (0, 1, 2))
_RACE_SECONDS = 0.4


@dataclass(frozen=True)
class Pair:
    """How a random document and its re-upload differ: the spelling of the hash, and the chunks of each."""

    random_chunks: tuple[ChunkSet, ...] = (_THREE,)
    twin_chunks: tuple[ChunkSet, ...] = (_THREE,)
    random_spelling: Callable[[str], str] = str
    twin_spelling: Callable[[str], str] = str
    raced: bool = False


_PAIRS = (
    Pair(),
    Pair(random_spelling=str.upper),
    Pair(random_spelling=" {} ".format),
    Pair(twin_spelling=str.upper, raced=True),
    # One of the two holds more of the file than the other.
    Pair(random_chunks=(ChunkSet("1", (0, 1, 2, 3, 4)),)),
    Pair(twin_chunks=(ChunkSet("1", (0, 1, 2, 3, 4)),)),
    Pair(twin_chunks=(), random_spelling=str.upper),
    Pair(random_chunks=(), twin_spelling="{}  ".format),
    # Some ordinals in both, some in one only.
    Pair(twin_chunks=(ChunkSet("1", (1, 2, 3, 4)),)),
    Pair(random_chunks=(ChunkSet("1", (0, 2, 4, 5)),), random_spelling="  {}".format),
    # Sets of different versions of the chunker: both stay.
    Pair(twin_chunks=(ChunkSet("2", (0, 1, 2, 3)),)),
    Pair(random_chunks=(_THREE, ChunkSet("2", (0, 1))), twin_chunks=(ChunkSet("2", (0, 1, 2, 3)),), raced=True),
)


def build_twins(connection: sqlalchemy.Connection, *, seed: int = 50, now: datetime | None = None) -> None:
    """Create schema `upload_pipeline` with the twins, and the vector buffer, in the caller's transaction.

    The same `seed` and `now` (by default this second, UTC) give the same rows. Raises as `build_incident` does.
    """
    moment = now or datetime.now(UTC).replace(microsecond=0)
    rng = random.Random(seed)
    made = incident.make_uploads(rng, moment)
    pairs = dict(zip(rng.sample([u for u in made if u.status == "complete"], len(_PAIRS)), _PAIRS, strict=True))
    first = [_first(upload, pairs[upload]) if upload in pairs else upload for upload in made]
    again = [_again(upload, pair, moment, rng) for upload, pair in pairs.items()]
    incident.fill(connection, sorted(first + again, key=lambda upload: upload.created_at), rng)
    incident.run_blocks(connection, "indexes", "triggers", "access", "vector_buffer")


def _first(upload: Upload, pair: Pair) -> Upload:
    return replace(
        upload,
        file_sha256=pair.random_spelling(upload.file_sha256),
        status="complete" if pair.random_chunks else None,
        chunk_sets=pair.random_chunks,
    )


def _again(upload: Upload, pair: Pair, now: datetime, rng: random.Random) -> Upload:
    """The same file of the same user: in the same second, or in the last hour, when all others were long there."""
    later = upload.created_at + timedelta(seconds=_RACE_SECONDS)
    return replace(
        upload,
        document_id=uuid.uuid5(NAMESPACE, f"{upload.user_id}:{upload.file_sha256}"),
        job_id=uuid4(rng),
        correlation_id=uuid4(rng),
        file_sha256=pair.twin_spelling(upload.file_sha256),
        status="complete" if pair.twin_chunks else "duplicate",
        created_at=later if pair.raced else now - timedelta(seconds=round(rng.uniform(300, 3000), 3)),
        seconds=round(rng.uniform(20, 180), 3) if pair.twin_chunks else 1.0,
        chunk_sets=pair.twin_chunks,
    )
