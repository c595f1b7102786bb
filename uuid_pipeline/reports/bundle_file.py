"""The evidence bundle as a file: a zip of one form only, so that every byte of it follows from names and contents.

Stored, not compressed: another version of a compressor would write other bytes. Checking makes the file anew from what
was read, and compares; what a change of contents and manifest together leaves consistent, only a digest kept elsewhere
can tell.
"""

import hashlib
import json
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uuid_pipeline.errors import UsageError

FORMAT = "uuid-pipeline evidence bundle, 1"
MANIFEST = "manifest.json"

_LOCAL, _CENTRAL, _END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"
_LOCAL_HEADER = struct.Struct("<4s5H3I2H")
_CENTRAL_HEADER = struct.Struct("<4s6H3I5H2I")
_END_RECORD = struct.Struct("<4s4H2IH")
_VERSION, _UNIX, _MIDNIGHT, _DATE = 20, 3 << 8, 0, (1 << 5) | 1  # the first day that a zip can name, 1980-01-01
_MODE = 0o100644 << 16


@dataclass(frozen=True)
class Checked:
    """What checking a bundle found: its digest, its files, and each departure in a sentence; none when intact."""

    digest: str
    files: Mapping[str, bytes]
    problems: tuple[str, ...]

    def read(self, name: str) -> Any:
        """The content of one of its JSON files."""
        return json.loads(self.files[name])


def canonical(value: Any) -> bytes:
    """JSON of one form: keys sorted, two spaces, a newline at the end."""
    return (json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False) + "\n").encode()


def bundle(execution_id: str, files: Mapping[str, bytes]) -> tuple[bytes, str]:
    """The bundle of these files with its manifest, and the digest over all of them."""
    manifest = _manifest(execution_id, files)
    return pack({MANIFEST: canonical(manifest), **dict(sorted(files.items()))}), manifest["digest"]


def _manifest(execution_id: str, files: Mapping[str, bytes]) -> dict[str, Any]:
    content = {
        "format": FORMAT,
        "execution_id": execution_id,
        "files": {
            name: {"bytes": len(text), "sha256": hashlib.sha256(text).hexdigest()} for name, text in files.items()
        },
    }
    return content | {"digest": hashlib.sha256(canonical(content)).hexdigest()}


def pack(files: Mapping[str, bytes]) -> bytes:
    """A zip of these files in this order: one sequence of bytes for one mapping."""
    body, directory = bytearray(), bytearray()
    for name, content in files.items():
        raw, size, crc = name.encode("ascii"), len(content), zlib.crc32(content)
        common = (_VERSION, 0, 0, _MIDNIGHT, _DATE, crc, size, size, len(raw), 0)
        directory += _CENTRAL_HEADER.pack(_CENTRAL, _UNIX | _VERSION, *common, 0, 0, 0, _MODE, len(body)) + raw
        body += _LOCAL_HEADER.pack(_LOCAL, *common) + raw + content
    end = _END_RECORD.pack(_END, 0, 0, len(files), len(files), len(directory), len(body), 0)
    return bytes(body + directory + end)


def check(path: Path) -> Checked:
    """Check every byte of a bundle. Raises UsageError when the file cannot be read or is no bundle at all."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"The bundle {path} cannot be read: {error.strerror}.") from error
    if not data.startswith(_LOCAL):
        raise UsageError(f"{path} is no evidence bundle: it does not begin as a zip does.")
    return check_bytes(data)


def check_bytes(data: bytes) -> Checked:
    """As :func:`check`, of a bundle's bytes."""
    files = _read(data)
    problems = _structure(data, files)
    manifest = _load(files.get(MANIFEST))
    if manifest is None:
        return Checked("", files, (*problems, f"{MANIFEST} is missing or is not the manifest of a bundle"))
    listed = manifest["files"]
    for name in sorted(listed.keys() | (files.keys() - {MANIFEST})):
        if name not in files:
            problems.append(f"{name} is missing")
        elif name not in listed:
            problems.append(f"{name} is not in the manifest")
        elif hashlib.sha256(files[name]).hexdigest() != listed[name]["sha256"]:
            problems.append(f"{name} has another content than the manifest says")
    present = {name: content for name, content in files.items() if name != MANIFEST}
    expected = _manifest(str(manifest.get("execution_id")), present)
    if not problems and files[MANIFEST] != canonical(expected):
        problems.append(f"{MANIFEST} is not what its files give")
    return Checked(expected["digest"], files, tuple(dict.fromkeys(problems)))


def _read(data: bytes) -> dict[str, bytes]:
    """Names and contents, one after the other, as far as they can be read."""
    files: dict[str, bytes] = {}
    at = 0
    while data[at : at + 4] == _LOCAL and at + _LOCAL_HEADER.size <= len(data):
        *_, size, name_length, extra = _LOCAL_HEADER.unpack_from(data, at)
        start = at + _LOCAL_HEADER.size
        name = data[start : start + name_length].decode("ascii", "backslashreplace")
        begin = start + name_length + extra
        files[name] = data[begin : begin + size]
        at = begin + size
    return files


def _structure(data: bytes, files: Mapping[str, bytes]) -> list[str]:
    """Where the file first departs from the one that its own names and contents make."""
    if not all(name.isascii() for name in files):
        return ["a file's name is not plain ASCII"]
    expected = pack(files)
    if data == expected:
        in_order = sorted(files, key=lambda name: (name != MANIFEST, name))
        return [] if list(files) == in_order else ["its files stand in another order"]
    shorter = min(len(data), len(expected))
    at = next((place for place in range(shorter) if data[place] != expected[place]), shorter)
    end = 0
    for name, content in files.items():
        end += _LOCAL_HEADER.size + len(name) + len(content)
        if at < end:
            return [f"{name} was changed (byte {at} of the bundle)"]
    return [f"the zip's own directory was changed (byte {at} of the bundle)"]


def _load(text: bytes | None) -> dict[str, Any] | None:
    try:
        found = json.loads(text or b"")
    except ValueError:
        return None
    files = found.get("files") if isinstance(found, dict) else None
    if not isinstance(files, dict) or not all(isinstance(f, dict) and "sha256" in f for f in files.values()):
        return None
    return dict(found)
