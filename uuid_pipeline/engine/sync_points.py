"""Named moments of the engine's protocol, at which a test can hold it: faults by design, not by luck."""

from collections.abc import Callable

# In the order in which a wave passes them; those of a batch recur.
NAMES = (
    "admitted", "prepared", "aliased", "guarded", "held", "merged", "moved", "proved", "journaled", "committed",
    "waves done", "put back", "restored",
)  # fmt: skip

_hooks: dict[str, Callable[[], None]] = {}


def on(name: str, hook: Callable[[], None]) -> None:
    """Call ``hook`` whenever the engine comes to this point. Raises KeyError for a name that there is not."""
    if name not in NAMES:
        raise KeyError(name)
    _hooks[name] = hook


def clear() -> None:
    """Forget every hook."""
    _hooks.clear()


def reach(name: str) -> None:
    """The engine is at this point now; nothing happens unless a test wants it to."""
    hook = _hooks.get(name)
    if hook is not None:
        hook()
