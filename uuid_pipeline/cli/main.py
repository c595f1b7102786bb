"""The command line's front door: one verb a file."""

import sys
import warnings

import typer
from typer.exceptions import TyperException

from uuid_pipeline.cli import (
    approve,
    backup,
    cancel,
    demo,
    drop_ledger,
    erase,
    export,
    finalize,
    guard,
    health,
    init,
    interruption,
    inventory,
    migrate,
    notices,
    output,
    pause,
    plan,
    profile,
    regenerate,
    rehearse,
    report,
    resume,
    retention,
    rollback,
    run,
    status,
    ui,
    validate,
    verify_bundle,
)
from uuid_pipeline.errors import InterruptedRunError

app = typer.Typer(
    name="uuid-pipeline",
    help="Change the primary keys of a live PostgreSQL document store without losing a row.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for verb in (
    demo.demo, init.init, profile.profile, inventory.inventory, plan.plan, approve.approve, backup.backup,
    rehearse.rehearse, run.run, migrate.migrate,
    pause.pause, resume.resume, cancel.cancel, validate.validate, rollback.rollback, finalize.finalize,
    notices.notices, report.report, drop_ledger.drop_ledger, health.health, erase.erase, retention.retention,
    export.export, regenerate.regenerate, status.status, verify_bundle.verify_bundle, ui.ui,
):  # fmt: skip
    app.command()(verb)
app.add_typer(guard.app)


def main() -> None:
    """Run the command line; Dagster's notices on preview features are not for its users."""
    warnings.filterwarnings("ignore", module=r"dagster.*")
    warnings.filterwarnings("ignore", message=r".*preview.*")
    try:
        _run()
    finally:
        # The answer is out: what is left is Python's own end, which nobody is to take for an interrupted verb.
        interruption.heed_no_more()


def _run() -> None:
    if "--json" not in sys.argv[1:]:
        app()
    try:
        sys.exit(app(standalone_mode=False) or 0)
    except typer.Abort:
        sys.exit(InterruptedRunError.exit_code)
    except TyperException as error:
        # Whoever reads our JSON gets it for a misspelt option too.
        sys.stdout.write(output.json_of({"error": error.format_message(), "exit_code": 2}) + "\n")
        sys.stderr.write(f"Error: {error.format_message()}\n")
        sys.exit(2)
