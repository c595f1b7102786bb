"""The incident's schema in any size: about ten chunks for three documents of four, a job and an event for each.

Rows are made by the server, set by set (sized.sql). Their vectors are mostly zero, and so small on the disk.
"""

import shutil
from pathlib import Path

import sqlalchemy

from uuid_pipeline.demo import incident
from uuid_pipeline.errors import UsageError

# Measured at 100,000 documents: 6.5 KB for one with everything that hangs on it, indexes included.
BYTES_A_DOCUMENT = 6_500
# A migration writes each row anew before vacuum has the old one, and its maps; the server keeps 2 GB of log.
_TIMES = 3
_LOG_BYTES = 2 * 1024**3


def build_sized(connection: sqlalchemy.Connection, documents: int) -> None:
    """Create schema `upload_pipeline` with this many documents, in the caller's transaction.

    Raises as `build_incident` does.
    """
    driver, found = incident.driver_of(connection), incident.blocks("sized.sql")
    connection.exec_driver_sql(f"CREATE SCHEMA {incident.SCHEMA}")
    incident.run_blocks(connection, "tables")
    # The rows refer to each other by construction: a foreign key that is asked a million times costs half a minute.
    driver.execute("SET LOCAL session_replication_role = replica")
    driver.execute(found["functions"])
    driver.execute(found["shape"], {"documents": documents})
    for name in ("vectors", "documents", "jobs", "chunks", "events"):
        driver.execute(found[name])
    driver.execute("SET LOCAL session_replication_role = origin")
    incident.run_blocks(connection, "unique_index", "indexes", "triggers", "access")
    driver.execute(found["statistics"])


def bytes_needed(documents: int) -> int:
    """What building and migrating a store of this size may take on the disk, at most; an estimate."""
    return documents * BYTES_A_DOCUMENT * _TIMES + _LOG_BYTES


def require_room(documents: int, directory: Path) -> None:
    """Raise UsageError when the disk of a directory has not the room for a store of this size."""
    needed, free = bytes_needed(documents), shutil.disk_usage(directory).free
    if needed > free:
        raise UsageError(
            f"A store of {documents:,} documents needs up to {needed / 1e9:.1f} GB with its migration; "
            f"{directory} has {free / 1e9:.1f} GB free. Ask for fewer documents, or set UUID_PIPELINE_HOME to a "
            "directory on a larger disk."
        )
