"""The Celery application of a worker: celery -A uuid_pipeline.operations.celery_worker worker --queues dagster

What it has taken from the broker it acknowledges when it is done, and says every few seconds that it still has it. So
a step may take hours, and yet another worker has it soon after this one's machine is gone.
"""

import os
import time
from typing import Any

from celery import Celery, bootsteps
from celery.signals import worker_init
from dagster_celery.make_app import make_app
from dagster_celery.tasks import create_task

from uuid_pipeline.operations import instance
from uuid_pipeline.operations.executor import BACKEND, BEAT_SECONDS, TRANSPORT, broker_url
from uuid_pipeline.settings import read_settings


class SignsOfLife(bootsteps.StartStopStep):  # type: ignore[misc]
    """Keeps the tasks of a living worker from being given to another one.

    Redis gives back what was not acknowledged within the visibility timeout, whether or not its worker lives.
    """

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def start(self, parent: Any) -> None:
        """Called by the worker when it consumes, and again after each lost connection."""
        self._timer = parent.timer.call_repeatedly(BEAT_SECONDS, renew, (parent,))

    def stop(self, _parent: Any) -> None:
        self._timer.cancel()


def renew(consumer: Any) -> None:
    """Say of every task that this worker has taken and not finished that it still has it."""
    qos = consumer.task_consumer.channel.qos
    taken = list(qos._delivered)
    if not taken:
        return
    with qos.channel.conn_or_acquire() as client:
        # Only those that are still ours: one that was given to another worker has a new tag.
        client.zadd(qos.unacked_index_key, dict.fromkeys(taken, time.time()), xx=True)


@worker_init.connect  # type: ignore[untyped-decorator]
def _find_the_instance(**_: object) -> None:
    instance.prepare(read_settings())


def _make() -> Celery:
    made: Celery = make_app(  # type: ignore[no-untyped-call]
        {"broker": broker_url(), "backend": os.environ.get(BACKEND, "").strip() or broker_url()}
    )
    made.conf.update(
        broker_transport_options=TRANSPORT,
        broker_connection_retry_on_startup=True,
        # One step at a time, and none kept waiting behind it while another worker is free.
        worker_prefetch_multiplier=1,
        worker_concurrency=1,
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        # A worker that lost the broker goes on: the lease tells who writes.
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_send_task_events=False,
        # Dagster logs to its instance; the worker's own lines go to standard error as they are.
        worker_hijack_root_logger=False,
    )
    made.steps["consumer"].add(SignsOfLife)
    return made


app = _make()
execute_plan = create_task(app)  # type: ignore[no-untyped-call]
