"""What can go wrong in words a user can act on; each class carries the command line's exit code."""

STANDS = "What was committed stands; the next run goes on from there."


class PipelineError(Exception):
    """An error whose message says what was found, where, and what to do next."""

    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class UsageError(PipelineError):
    """Wrong configuration, spec or connection: exit code 2, nothing was touched."""

    exit_code = 2


class ConnectionLostError(PipelineError):
    """The connection to the store broke in the middle of the work: exit code 2, as when there is none to begin with."""

    exit_code = 2


class RefusedError(PipelineError):
    """The work was refused (a gate, a right, a lease, a missing approval): exit code 1."""


class UnmergeableError(RefusedError):
    """Clusters that cannot be merged as things are, which their plan did not foresee; ``ordinals`` are theirs."""

    def __init__(self, message: str, ordinals: list[int]) -> None:
        super().__init__(message)
        self.ordinals = ordinals


class OvertakenError(PipelineError):
    """Between a batch's look at what it is to write and the write somebody changed that: the batch is tried again."""


class InterruptedRunError(PipelineError):
    """Somebody asked the process to end (Ctrl-C, SIGTERM, SIGHUP): exit code 130, as a shell gives it."""

    exit_code = 130

    def __init__(self) -> None:
        super().__init__(f"Interrupted. {STANDS}")


class BatchError(PipelineError):
    """A batch's own proof failed; its transaction was rolled back and nothing of it stayed."""
