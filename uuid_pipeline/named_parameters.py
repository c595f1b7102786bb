"""SQL that people write in a spec with named parameters (``:document_id``), made ready for the driver."""

import re
from collections.abc import Collection

# What a colon may stand in without being a parameter: literals, quoted names, comments, dollar quotes, casts.
_TOKENS = re.compile(
    r"""(?P<kept>  [eE]'(?:[^'\\]|\\.|'')*' | '(?:[^']|'')*' | "(?:[^"]|"")*"
                 | --[^\n]* | /\*.*?\*/ | \$(?P<tag>\w*)\$.*?\$(?P=tag)\$ | :: | := )
      | (?<![\w:]) : (?P<name>[A-Za-z_]\w*)
      | (?P<percent>%)""",
    re.VERBOSE | re.DOTALL,
)


def names(text: str) -> set[str]:
    """The parameters that a statement uses."""
    return {match["name"] for match in _TOKENS.finditer(text) if match["name"]}


def unknown(text: str, known: Collection[str]) -> list[str]:
    """Those that nobody would bind."""
    return sorted(names(text) - set(known))


def for_driver(text: str) -> str:
    """The statement with ``%(name)s`` for each parameter and every other percent sign doubled."""

    def written(match: re.Match[str]) -> str:
        if match["name"]:
            return f"%({match['name']})s"
        return (match["kept"] or "%").replace("%", "%%")

    return _TOKENS.sub(written, text)
