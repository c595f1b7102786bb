"""The specification: the YAML that says which keys to derive, and how."""

import hashlib
import re
import uuid
from collections.abc import Hashable, Mapping
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, get_args
from zoneinfo import ZoneInfo

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from uuid_pipeline.errors import UsageError
from uuid_pipeline.identity import Normalization, Template, parse_template
from uuid_pipeline.named_parameters import unknown

DEFAULT_SPEC = "upload_pipeline.yaml"

# A corrected address, another threshold: what changes nothing in the store must not make a plan stale.
NOT_OF_THE_PLAN = frozenset(
    {"notices", "health", "schedules", "privacy", "retention", "owners", "ledger_in_publications"}
)

# A hundred years: beyond, PostgreSQL's and Python's own intervals end.
MOST_DAYS = 36_500
MOST_HOURS = 24 * MOST_DAYS

Name = Annotated[str, Field(min_length=1, max_length=63)]
# What Dagster takes for an owner: a team, or an address as it reads one.
Owner = Annotated[
    str, Field(pattern=r"^(team:[A-Za-z0-9_-]+|[A-Za-z0-9._%+-]+@[A-Za-z0-9][A-Za-z0-9.-]*\.[A-Za-z]{2,7})$")
]
BackupMode = Literal["dump", "attested", "none"]
Personal = Literal["owner", "title", "natural_key"]
PERSONAL: tuple[Personal, ...] = get_args(Personal)
SurvivorRule = Literal["complete", "children", "oldest", "newest"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Describe(_Part):
    """Columns that tell people about a document; an absent one is shown as unknown.

    ``content``: equal where the content is, a hash say; only to find look-alikes by.
    """

    owner: Name | None = None
    created_at: Name | None = None
    status: Name | None = None
    size: Name | None = None
    title: Name | None = None
    content: Name | None = None

    def columns(self) -> dict[str, str]:
        """Purpose -> column, of those that are set."""
        return {purpose: column for purpose, column in self if column is not None}


class EntitySpec(_Part):
    """A table whose key is derived."""

    table: Name
    key: Name
    identity: str
    parent: Name | None = None
    normalize: dict[Name, list[Normalization]] = {}
    valid: dict[Name, str] = {}
    describe: Describe = Describe()
    on_duplicate: Literal["merge", "block"] = "merge"
    on_collision: Literal["refuse", "wait"] = "refuse"
    survivor: list[SurvivorRule] = Field(default=["complete", "children", "oldest"], min_length=1)
    merge_as_set: list[Name] = []
    witnesses: list[dict[str, str]] = []
    busy: str | None = None

    @field_validator("identity")
    @classmethod
    def _template_parses(cls, text: str) -> str:
        parse_template(text)
        return text

    @field_validator("valid")
    @classmethod
    def _patterns_compile(cls, patterns: dict[str, str]) -> dict[str, str]:
        for field, pattern in patterns.items():
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"the pattern of {field} is no regular expression: {error}") from error
        return patterns

    @field_validator("witnesses", mode="before")
    @classmethod
    def _values_as_text(cls, witnesses: Any) -> Any:
        if not isinstance(witnesses, list):
            return witnesses
        return [{k: str(v) for k, v in w.items()} if isinstance(w, dict) else w for w in witnesses]

    @model_validator(mode="after")
    def _fields_belong_to_identity(self) -> "EntitySpec":
        fields = set(self.template.fields)
        for part, names in (("normalize", self.normalize), ("valid", self.valid)):
            for name in names:
                if name not in fields:
                    raise ValueError(f"{part} names {name}, which the identity {self.identity!r} does not use")
        if self.key in fields:
            raise ValueError(f"the identity {self.identity!r} uses the key that it is to replace, {self.key}")
        for witness in self.witnesses:
            if set(witness) != fields | {"id"}:
                wanted = ", ".join([*sorted(fields), "id"])
                raise ValueError(f"a witness must give exactly {wanted}; this one gives {', '.join(witness)}")
        return self

    @property
    def template(self) -> Template:
        return parse_template(self.identity)


class SoftReference(_Part):
    """A column that holds an entity's key without a foreign key.

    ``path`` leads to the id inside a json(b) column: names separated by dots, ``*`` for every element of an array.
    ``orphans: keep``: it may hold values that are no row's key, as history or a column of mixed content does.
    """

    table: Name
    column: Name
    entity: Name
    path: str | None = Field(default=None, pattern=r"^[^.]+(\.[^.]+)*$")
    orphans: Literal["block", "keep"] = "block"
    optional: bool = False


class IgnoredReference(_Part):
    """A column found to hold ids, looked at, and left alone on purpose."""

    table: Name
    column: Name
    reason: str
    optional: bool = False


class Statuses(_Part):
    """How the application's statuses are read; ``null`` stands for a missing one."""

    complete: list[str | None] = []
    failed: list[str | None] = []


class Retrieval(_Part):
    """The application's own similarity query, and how much of it is measured.

    ``role`` is what its users connect as, ``as_user`` the setting that tells the policies who asks; rows farther than
    ``max_distance`` are no answer. A measurement asks for ``sample`` documents and takes ``seconds`` at most.
    """

    vector: Name
    distance: Literal["cosine", "l2", "inner_product"] = "cosine"
    chunk_table: Name
    as_user: str | None = Field(default=None, pattern=r"^[^.]+(\.[^.]+)+$")
    role: Name | None = None
    k: int = Field(default=10, ge=1, le=100)
    max_distance: float | None = None
    sample: int = Field(default=200, ge=1, le=2_000)
    seconds: float = Field(default=20, gt=0)


class Waves(_Part):
    """Sizes in documents. ``recent`` takes from the last ``recent_days``; ``remaining`` is split at its size."""

    canary: int = Field(default=5, ge=0)
    recent: int = Field(default=15, ge=0)
    recent_days: int = Field(default=7, ge=1, le=MOST_DAYS)
    remaining: int = Field(default=100_000, ge=1)


class Sweep(_Part):
    """How often, after the planned waves, what arrived meanwhile is taken along."""

    max_passes: int = Field(default=2, ge=0, le=20)


class Aliases(_Part):
    """``finalize`` refuses while an old id was used within the last ``quiet_hours``."""

    quiet_hours: float = Field(default=24, ge=0, le=MOST_HOURS)


class Rehearsal(_Part):
    """``required``: a plan is approved only after a rehearsal passed. ``users``: on so many users' documents only."""

    required: bool = False
    users: int | None = Field(default=None, ge=1)


class Throttle(_Part):
    """Limits of the health signals; a signal without a limit is not read. Seconds, or milliseconds where named so."""

    replication_lag_seconds: float | None = Field(default=None, gt=0)
    lock_waits: int | None = Field(default=None, ge=0)
    long_transaction_seconds: float | None = Field(default=None, gt=0)
    query: str | None = None
    query_milliseconds: float | None = Field(default=None, gt=0)
    check_seconds: float = Field(default=1, ge=0)
    max_wait_seconds: float = Field(default=600, ge=0)

    @model_validator(mode="after")
    def _query_has_a_limit(self) -> "Throttle":
        if (self.query is None) != (self.query_milliseconds is None):
            raise ValueError("throttle: query and query_milliseconds belong together")
        return self


RegenerationReason = Literal["no_chunks", "no_vectors", "some_without_vector", "failed"]
REGENERATION_PARAMETERS = ("regeneration_id", "document_id", "owner", "status", "title", "reasons")


class Regeneration(_Part):
    """How documents that no re-keying can make retrievable are queued for the application's workers.

    ``statement`` and ``undo`` are SQL, run once a document with the parameters ``:document_id`` (its id now),
    ``:regeneration_id`` (a fresh UUID, the same in both), ``:owner``, ``:status``, ``:title``, ``:reasons``; all are
    text. ``only``: the reasons that count; without it, all do.
    """

    statement: str | None = Field(default=None, min_length=1)
    undo: str | None = Field(default=None, min_length=1)
    only: list[RegenerationReason] = []

    @field_validator("statement", "undo")
    @classmethod
    def _parameters_are_known(cls, text: str | None) -> str | None:
        wrong = unknown(text or "", REGENERATION_PARAMETERS)
        if wrong:
            raise ValueError(f"no parameter :{wrong[0]}; there are :{', :'.join(REGENERATION_PARAMETERS)}")
        return text

    @model_validator(mode="after")
    def _undo_needs_a_statement(self) -> "Regeneration":
        if self.undo is not None and self.statement is None:
            raise ValueError("regeneration: undo without statement undoes nothing")
        return self


class StrategySettings(_Part):
    """Which approach is advised, by the share of documents whose id is not deterministic; ``approach`` overrides it.

    ``auto`` and ``full`` move every document that is due, ``hybrid`` the waves that come first, the others none.
    """

    full_above: float = Field(default=0.8, ge=0, le=1)
    hybrid_above: float = Field(default=0.5, ge=0, le=1)
    approach: Literal["auto", "full", "hybrid", "forward-only", "regenerate"] = "auto"

    @model_validator(mode="after")
    def _in_order(self) -> "StrategySettings":
        if self.hybrid_above > self.full_above:
            raise ValueError("hybrid_above is greater than full_above, so that nothing would be a hybrid")
        return self


class RollbackTriggers(_Part):
    """Figures from which a migration is to be undone; null: not one of them. Shares are 0 to 1."""

    wave_gate_red: bool = True
    failed_share: float | None = Field(default=0.05, ge=0, le=1)
    locked_share: float | None = Field(default=0.05, ge=0, le=1)
    query_times: float | None = Field(default=3, gt=1)
    retrieval_drop: float | None = Field(default=0, ge=0, le=1)
    application_errors: float | None = Field(default=0.05, ge=0, le=1)


Audience = Literal["support", "stakeholders"]


class Notices(_Part):
    """What notices say of the application, and through which variables of the environment they leave."""

    templates: str | None = None
    product: str | None = None
    contact: str | None = None
    window: str | None = None
    send: dict[Audience, Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]*$")]] = {}


class HealthThresholds(_Part):
    """Where a figure becomes a failed check; shares from 0 to 1. None: not checked."""

    generation_failure: float | None = Field(default=0.05, ge=0, le=1)
    mismatch: float | None = Field(default=0.01, ge=0, le=1)
    retrieval_failure: float | None = Field(default=0.10, ge=0, le=1)
    migration_failure: float | None = Field(default=0.05, ge=0, le=1)
    consistency: float | None = Field(default=0.80, ge=0, le=1)
    degradation: float | None = Field(default=0.50, ge=0)


class Health(_Part):
    """How often the store's health is looked at, and how much that may cost.

    A store of up to ``small_rows`` rows is read whole at every tick, a larger one every ``full_scan_hours``.
    """

    full_scan_hours: float = Field(default=24, gt=0, le=MOST_HOURS)
    small_rows: int = Field(default=20_000, ge=0)
    sample: int = Field(default=200, ge=1, le=10_000)
    statement_seconds: float = Field(default=5, gt=0)
    full_scan_seconds: float = Field(default=600, gt=0)
    keep_days: float = Field(default=90, gt=0, le=MOST_DAYS)
    latency_floor_milliseconds: float = Field(default=1, ge=0)
    thresholds: HealthThresholds = HealthThresholds()


_CRON_FIELDS = (("minute", 0, 59), ("hour", 0, 23), ("day", 1, 31), ("month", 1, 12), ("weekday", 0, 7))


def _require_cron(text: str) -> str:
    """Five fields of numbers, as cron has them: ``*``, ``7``, ``1-5``, ``*/5``, and lists of these."""
    fields = text.split()
    if len(fields) != len(_CRON_FIELDS):
        raise ValueError(f"schedules: {text!r} is no cron expression: minute, hour, day, month, weekday")
    for field, (name, least, most) in zip(fields, _CRON_FIELDS, strict=True):
        for item in field.split(","):
            found = re.fullmatch(r"(?:\*|(\d+)(?:-(\d+))?)(?:/(\d+))?", item)
            numbers = [int(number) for number in found.groups()[:2] if number] if found else []
            if found is None or found[3] == "0" or any(not least <= number <= most for number in numbers):
                raise ValueError(f"schedules: {text!r}: the {name} {item!r} is none from {least} to {most}")
    return text


Cron = Annotated[str, AfterValidator(_require_cron)]


class Schedules(_Part):
    """When what runs by itself, as cron expressions in a time zone; ``null`` leaves a schedule out."""

    timezone: str = "UTC"
    health: Cron | None = "*/5 * * * *"
    assessment: Cron | None = "30 2 * * *"
    validation: Cron | None = "0 4 * * 0"
    alias_review: Cron | None = "30 4 * * 0"

    @field_validator("timezone")
    @classmethod
    def _zone_is_known(cls, name: str) -> str:
        try:
            ZoneInfo(name)
        except (KeyError, ValueError, OSError) as error:
            raise ValueError(f"schedules: no time zone {name!r} is known here; UTC, Europe/Berlin, …") from error
        return name


class Privacy(_Part):
    """What people are not to see of a document, in tables, messages and reports; the ledger keeps what it needs."""

    redact: list[Personal] = []


class Retention(_Part):
    """How long what we keep is kept, in days since its execution ended; None: until somebody removes it."""

    dumps_days: int | None = Field(default=None, ge=0, le=MOST_DAYS)
    archives_days: int | None = Field(default=None, ge=0, le=MOST_DAYS)
    maps_days: int | None = Field(default=None, ge=0, le=MOST_DAYS)
    reports_days: int | None = Field(default=None, ge=0, le=MOST_DAYS)
    history_days: int | None = Field(default=None, ge=0, le=MOST_DAYS)


class Spec(_Part):
    """The whole specification; only namespace, schema and each entity's table, key, identity are required."""

    namespace: uuid.UUID
    schema_name: Name = Field(alias="schema")
    entities: dict[Name, EntitySpec] = Field(min_length=1)
    soft_references: list[SoftReference] = []
    ignore_references: list[IgnoredReference] = []
    triggers: dict[Name, Literal["fire", "silence"]] = {}
    backup: BackupMode = "dump"
    backup_max_age_hours: float = Field(default=24, gt=0, le=MOST_HOURS)
    rehearsal: Rehearsal = Rehearsal()
    statuses: Statuses = Statuses()
    retrieval: Retrieval | None = None
    waves: Waves = Waves()
    sweep: Sweep = Sweep()
    aliases: Aliases = Aliases()
    throttle: Throttle = Throttle()
    regeneration: Regeneration = Regeneration()
    strategy: StrategySettings = StrategySettings()
    rollback_triggers: RollbackTriggers = RollbackTriggers()
    notices: Notices = Notices()
    health: Health = Health()
    schedules: Schedules = Schedules()
    privacy: Privacy = Privacy()
    retention: Retention = Retention()
    owners: list[Owner] = []
    ledger_in_publications: list[Name] = []
    batch_rows: int = Field(default=5_000, ge=1)
    lanes: int = Field(default=2, ge=1, le=8)
    approval_hours: int = Field(default=168, ge=1, le=MOST_HOURS)
    high_impact_documents: int = Field(default=5, ge=1)

    @model_validator(mode="after")
    def _entities_are_known(self) -> "Spec":
        for name, entity in self.entities.items():
            if not re.fullmatch(r"[a-z][a-z0-9_]{0,39}", name) or re.search(r"_[0-9]+$", name):
                raise ValueError(
                    f"entity {name!r}: use lower-case letters, digits and _ (at most 40), but end in no _ and number"
                )
            if entity.parent is not None and entity.parent not in self.entities:
                raise ValueError(f"entity {name}: its parent {entity.parent!r} is no entity of this spec")
        for reference in self.soft_references:
            if reference.entity not in self.entities:
                raise ValueError(f"soft reference {reference.table}.{reference.column}: no entity {reference.entity!r}")
        tables = [entity.table for entity in self.entities.values()]
        if len(set(tables)) < len(tables):
            raise ValueError("two entities have the same table; a row can have one derived key only")
        self._refuse_cycles()
        return self

    def _refuse_cycles(self) -> None:
        for name in self.entities:
            seen, at = [name], self.entities[name].parent
            while at is not None:
                if at in seen:
                    raise ValueError(f"the parents form a circle: {' -> '.join([*seen, at])}")
                seen.append(at)
                at = self.entities[at].parent

    @property
    def digest(self) -> str:
        """SHA-256 over the canonical JSON: two files that mean the same have the same digest.

        Without what changes nothing in the store: a corrected address in a notice must not stop an execution.
        """
        return hashlib.sha256(self.model_dump_json(by_alias=True, exclude=set(NOT_OF_THE_PLAN)).encode()).hexdigest()


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML would let a second key of one name silently win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                continue  # the base class refuses it with its place
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    "reading a mapping", node.start_mark, f"found the key {key!r} twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def load_spec(path: Path | None) -> Spec:
    """Read a spec file, or the default one (the incident's schema) when ``path`` is None.

    Raises UsageError naming file, line and fault.
    """
    if path is None:
        text = resources.files("uuid_pipeline.specs").joinpath(DEFAULT_SPEC).read_text()
        return parse_spec(text, DEFAULT_SPEC)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"The spec {path} cannot be read: {error.strerror}. Give another with --spec.") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"The spec {path} is not UTF-8 text (byte {error.start}).") from error
    return parse_spec(text, str(path))


# Each stage and each check reads the spec anew, and a plan is two dozen of them.
@lru_cache(maxsize=16)
def parse_spec(text: str, source: str) -> Spec:
    """Spec from YAML text; ``source`` names it in messages. Raises UsageError with the line."""
    try:
        content = yaml.load(text, Loader=_UniqueKeyLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}" if mark else "unknown place"
        raise UsageError(f"The spec {source} is not valid YAML at {where}: {error.problem}.") from error
    except yaml.YAMLError as error:
        raise UsageError(f"The spec {source} is not valid YAML: {error}") from error
    except RecursionError as error:
        raise UsageError(f"The spec {source} is no specification: it is nested too deeply.") from error
    if not isinstance(content, Mapping):
        raise UsageError(f"The spec {source} holds no mapping; it needs namespace, schema and entities (line 1).")
    try:
        return Spec.model_validate(content)
    except ValidationError as error:
        tree = yaml.compose(text, Loader=yaml.SafeLoader)
        lines = [
            f"  line {_line_of(tree, fault['loc'])}: {_dotted(fault['loc'])}{_plain(fault['msg'])}"
            for fault in error.errors()
        ]
        raise UsageError("\n".join([f"The spec {source} is not a valid specification:", *lines])) from error


def _plain(message: str) -> str:
    return message.removeprefix("Value error, ")


def _dotted(location: tuple[int | str, ...]) -> str:
    return ".".join(str(step) for step in location) + ": " if location else ""


def _line_of(tree: yaml.Node | None, location: tuple[int | str, ...]) -> int:
    """The line (from 1) of the deepest part of ``location`` that the text has."""
    node = tree
    for step in location:
        if isinstance(node, yaml.MappingNode):
            found = next((value for key, value in node.value if key.value == str(step)), None)
        elif isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
            found = node.value[step]
        else:
            found = None
        if found is None:
            break
        node = found
    return node.start_mark.line + 1 if node is not None else 1
