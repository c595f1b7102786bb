"""Strategies for random stores: few rows, odd names, hostile text."""

from typing import Any

from hypothesis import strategies as st

from uuid_pipeline_tests.properties.oracle import targets
from uuid_pipeline_tests.properties.stores import ForeignKey, Level, Pairs, RandomStore, Records, Referrer, Value

ACTIONS = ("NO ACTION", "RESTRICT", "CASCADE", "SET NULL", "SET DEFAULT")
DEFERRALS = ("", "DEFERRABLE", "DEFERRABLE INITIALLY DEFERRED")
KEY_TYPES = ("uuid", "text", "varchar(36)", "varchar")
NAMES = ("docs", "Select", "a b", 'q"uote', "50%", "straße", "%s", "it's", "x" * 63)
KEYS = ("id", "The Key", 'k"%s')
SEPARATORS = ("/", ":", "#", " %s ", "%", "'", '"', "\\", "::", "é")
SIGNS = ("%", "%s", "%(x)s", "%%", "'", '"', "\\", "\\N", "\n", "\t a\n", "", " ")
WORDS = (None, "!", "not valid!", "{nr}", "A a", "İ", "straße", "€" * 999)
RULES: tuple[list[str], ...] = ([], ["strip"], ["lower"], ["strip", "lower"])

text = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=12)  # what PostgreSQL's text takes
texts = st.one_of(st.sampled_from((*WORDS, *SIGNS)), text)


@st.composite
def stores(draw: st.DrawFn, duplicates: bool = False) -> RandomStore:
    """A store of one to three levels; with ``duplicates`` some rows share their natural key, spelled alike or not."""
    names = draw(st.permutations(NAMES))
    depth = draw(st.integers(1, 3))
    levels = [_level(draw, names[number], number) for number in range(depth)]
    referrers = [_referrer(draw, names[depth + number], levels) for number in range(draw(st.integers(0, 3)))]
    used = depth + len(referrers)
    pairs = [_pairs(draw, names[used + number], levels) for number in range(draw(st.integers(0, 2)))]
    store = RandomStore(
        levels=levels,
        referrers=referrers,
        pairs=pairs,
        favourite=_maybe_foreign_key(draw),
        normalize=draw(st.sampled_from(RULES)),
        batch_rows=draw(st.sampled_from((1, 10, 30, 5000))),
        rows={table: [] for table in names[: used + len(pairs)]},
    )
    for number in range(depth):
        _fill_level(draw, store, number, duplicates)
    _point_up_and_down(draw, store)
    for referrer in referrers:
        _fill_referrer(draw, store, referrer)
    for one in pairs:
        _fill_pairs(draw, store, one)
    return store


def _foreign_key(draw: st.DrawFn) -> ForeignKey:
    update, delete = (draw(st.sampled_from(ACTIONS)) for _ in "ud")
    return ForeignKey(update, delete, draw(st.sampled_from(DEFERRALS)), draw(st.sampled_from(("", "", "NOT VALID"))))


def _maybe_foreign_key(draw: st.DrawFn) -> ForeignKey | None:
    return _foreign_key(draw) if draw(st.booleans()) else None


def _level(draw: st.DrawFn, table: str, number: int) -> Level:
    return Level(
        table=table,
        key=draw(st.sampled_from(KEYS)),
        key_type=draw(st.sampled_from(KEY_TYPES)),
        named=draw(st.booleans()),
        separator=draw(st.sampled_from(SEPARATORS)),
        to_parent=_foreign_key(draw) if number else None,
        to_itself=_maybe_foreign_key(draw),
    )


def _referrer(draw: st.DrawFn, table: str, levels: list[Level]) -> Referrer:
    level = draw(st.integers(0, len(levels) - 1))
    key = _maybe_foreign_key(draw)
    composite = key is not None and level > 0 and draw(st.booleans())
    return Referrer(table, level, key, composite, in_primary_key=draw(st.booleans()))


def _pairs(draw: st.DrawFn, table: str, levels: list[Level]) -> Pairs:
    return Pairs(table, draw(st.integers(0, len(levels) - 1)), _foreign_key(draw), _foreign_key(draw))


def _fill_level(draw: st.DrawFn, store: RandomStore, number: int, duplicates: bool) -> None:
    level, rows = store.levels[number], store.rows[store.levels[number].table]
    above = store.levels[number - 1]
    for parent in store.rows[above.table] if number else [{}]:
        for nr in range(draw(st.integers(0, 3 if number else 7))):
            row: dict[str, Value] = {level.key: _fresh_key(draw, level, rows)}
            if number:
                row["parent"] = parent[above.key]
            rows.append(row | {"na%me": draw(texts), "nr": nr})
            if duplicates and draw(st.booleans()):
                rows.append(_twin(draw, level, rows))
    if not duplicates and draw(st.booleans()):
        _make_right(draw, store, number)


def _fresh_key(draw: st.DrawFn, level: Level, rows: Records) -> str:
    taken = {row[level.key] for row in rows}
    random = st.uuids(version=4).map(str)
    if level.key_type == "uuid":
        return draw(random.filter(lambda key: key not in taken))
    odd = st.one_of(random, random.map(str.upper), text, st.sampled_from(("", "%s", "'", "a b ")))
    return draw(odd.filter(lambda key: key not in taken))


def _twin(draw: st.DrawFn, level: Level, rows: Records) -> dict[str, Value]:
    """The newest row's natural key under another id; what normalising takes away may differ."""
    name = rows[-1]["na%me"]
    spelled = draw(st.sampled_from((name, f" {name} ", str(name).upper()))) if isinstance(name, str) else name
    return rows[-1] | {level.key: _fresh_key(draw, level, rows), "na%me": spelled}


def _make_right(draw: st.DrawFn, store: RandomStore, number: int) -> None:
    """Some rows have their target id already, before anything hangs on them."""
    level, rows = store.levels[number], store.rows[store.levels[number].table]
    as_text: Any = store.rows
    target = targets(store, as_text)[number]
    for row in rows:
        right = target.get(str(row[level.key]))
        if right is not None and draw(st.booleans()) and right not in {other[level.key] for other in rows}:
            row[level.key] = right


def _point_up_and_down(draw: st.DrawFn, store: RandomStore) -> None:
    """References within a level, to the row itself too, and from the root to the lowest level."""
    for level in store.levels:
        keys = [row[level.key] for row in store.rows[level.table]]
        for row in store.rows[level.table] if level.to_itself else ():
            row["before"] = draw(st.sampled_from([None, *keys]))
    lowest = store.levels[-1]
    keys = [row[lowest.key] for row in store.rows[lowest.table]]
    for row in store.rows[store.levels[0].table] if store.favourite else ():
        row["favourite"] = draw(st.sampled_from([None, *keys]))


def _fill_referrer(draw: st.DrawFn, store: RandomStore, referrer: Referrer) -> None:
    level = store.levels[referrer.level]
    choices: list[dict[str, Value] | None] = [*store.rows[level.table]]
    if not referrer.in_primary_key:
        choices.append(None)
    for number in range(draw(st.integers(0, 5)) if choices else 0):
        target = draw(st.sampled_from(choices))
        row: dict[str, Value] = {"id": number, "ref%": target[level.key] if target else None}
        if referrer.composite:
            row["above"] = target["parent"] if target else None
        store.rows[referrer.table].append(row | {"words": draw(texts)})


def _fill_pairs(draw: st.DrawFn, store: RandomStore, pairs: Pairs) -> None:
    """Up to a dozen of all the pairs that there can be, a row with itself among them."""
    level = store.levels[pairs.level]
    keys = [row[level.key] for row in store.rows[level.table]]
    possible = st.tuples(st.sampled_from(keys), st.sampled_from(keys)) if keys else None
    for one, other in draw(st.lists(possible, unique=True, max_size=12)) if possible is not None else ():
        store.rows[pairs.table].append({"one": one, "other": other, "words": draw(texts)})
