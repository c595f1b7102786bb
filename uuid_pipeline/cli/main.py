"""The command line's front door: one verb a file."""

import warnings

import typer

from uuid_pipeline.cli import (
    approve,
    cancel,
    demo,
    drop_ledger,
    erase,
    export,
    finalize,
    init,
    inventory,
    migrate,
    pause,
    plan,
    profile,
    resume,
    retention,
    rollback,
    run,
    status,
    ui,
    validate,
)

app = typer.Typer(
    name="uuid-pipeline",
    help="Change the primary keys of a live PostgreSQL document store without losing a row.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for verb in (
    demo.demo, init.init, profile.profile, inventory.inventory, plan.plan, approve.approve, run.run, migrate.migrate,
    pause.pause, resume.resume, cancel.cancel, validate.validate, rollback.rollback, finalize.finalize,
    drop_ledger.drop_ledger, erase.erase, retention.retention, export.export, status.status, ui.ui,
):  # fmt: skip
    app.command()(verb)


def main() -> None:
    """Run the command line; Dagster's notices on preview features are not for its users."""
    warnings.filterwarnings("ignore", module=r"dagster.*")
    warnings.filterwarnings("ignore", message=r".*preview.*")
    app()
