"""``uuid-pipeline verify-bundle``"""

from pathlib import Path
from typing import Annotated

import typer

from uuid_pipeline.cli.output import Answer, JsonOption, answer_with
from uuid_pipeline.cli.session import open_configured_store
from uuid_pipeline.errors import RefusedError
from uuid_pipeline.reports import bundle_file, evidence
from uuid_pipeline.reports.bundle_file import Checked
from uuid_pipeline.settings import read_settings


def verify_bundle(
    path: Annotated[Path, typer.Argument(help="The bundle, evidence-EXECUTION.zip.")],
    digest: Annotated[
        str | None, typer.Option("--digest", help="The digest that was noted when it was made; must be this one.")
    ] = None,
    against_store: Annotated[
        bool, typer.Option("--against-store", help="Compare it with the ledger of the store, too.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Check every byte of an evidence bundle: exit code 0 intact, 1 changed, 2 unreadable. Reads only."""

    def verb(answer: Answer) -> None:
        checked = bundle_file.check(path)
        problems = list(checked.problems)
        if digest is not None and digest.strip().lower() != checked.digest:
            problems.append(f"its digest is {checked.digest or 'unknown'}, not {digest}")
        if against_store and not problems:
            problems += _against_store(checked)
        answer.data |= {"intact": not problems, "digest": checked.digest, "problems": problems}
        answer.data["files"] = sorted(checked.files)
        if problems:
            raise RefusedError("\n".join([f"The bundle {path} is not as it was made:", *[f"  {p}" for p in problems]]))
        execution = checked.read("execution.json")
        answer.data["execution_id"] = execution["execution_id"]
        said = ", and as the store's ledger has it" if against_store else ""
        answer.say(f"Intact{said}: {len(checked.files)} files of execution {execution['execution_id']}.")
        answer.say(f"Digest {checked.digest}; compare it with the one noted when the bundle was made.")

    answer_with(verb, as_json, None)


def _against_store(checked: Checked) -> list[str]:
    engine = open_configured_store(read_settings())
    try:
        with engine.begin() as connection:
            return evidence.differences(connection, checked)
    finally:
        engine.dispose()
