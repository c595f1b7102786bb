"""Where the steps of stages and waves run: in the run's own process, or on Celery workers, as the environment says."""

import os

import dagster as dg

from uuid_pipeline.errors import UsageError

VARIABLE = "UUID_PIPELINE_EXECUTOR"
BROKER = "UUID_PIPELINE_CELERY_BROKER"
BACKEND = "UUID_PIPELINE_CELERY_BACKEND"

# A worker gives a sign of life for what it has taken every BEAT_SECONDS; what was without one for VISIBLE_SECONDS is
# taken for lost, looked for every SWEEP_SECONDS, and given to another worker. Together well within a minute.
BEAT_SECONDS = 5
VISIBLE_SECONDS = 20
SWEEP_SECONDS = 5
TRANSPORT = {
    "visibility_timeout": VISIBLE_SECONDS,
    "unacked_restore_interval": SWEEP_SECONDS,
    "unacked_restore_throttle": 1,
}


def on_workers() -> bool:
    """Whether steps go to Celery workers. Raises UsageError for a value that is neither."""
    chosen = os.environ.get(VARIABLE, "").strip() or "in_process"
    if chosen not in ("in_process", "celery"):
        raise UsageError(f"{VARIABLE} is {chosen!r}; it must be in_process or celery.")
    return chosen == "celery"


def broker_url() -> str:
    """The Redis broker's URL. Raises UsageError when it is missing or no Redis."""
    url = os.environ.get(BROKER, "").strip()
    if not url.startswith(("redis://", "rediss://", "redis+socket://")):
        raise UsageError(f"{BROKER} must be the broker's URL: redis://:PASSWORD@HOST:6379/0")
    return url


def stage_executor() -> dg.ExecutorDefinition:
    """The executor of every job that runs stages or waves.

    In one process, steps follow one another: stages pass through one ledger, and a wave has one writer anyway. On
    workers the ledger's gates and the store's lease keep the order.
    """
    if not on_workers():
        return dg.in_process_executor
    broker_url()
    try:
        from dagster_celery import celery_executor
    except ImportError as error:
        raise UsageError(f"{VARIABLE}=celery needs: pip install 'uuid-pipeline[celery]'") from error
    # By name, so that no password becomes part of a definition.
    configured: dg.ExecutorDefinition = celery_executor.configured(
        {
            "broker": {"env": BROKER},
            "backend": {"env": BACKEND if os.environ.get(BACKEND, "").strip() else BROKER},
            "config_source": {"broker_transport_options": TRANSPORT},
        },
        name="celery",
    )
    return configured
