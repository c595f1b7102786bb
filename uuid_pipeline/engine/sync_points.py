"""Named moments of the engine's protocol, at which a test can hold it: faults by design, not by luck."""

from collections.abc import Callable

# In the order in which a wave passes them; those of a batch recur. The -ing ones come after each of several.
FORWARD = (
    "admitted", "looked", "prepared", "aliasing", "aliased", "guarding", "guarded", "held", "merged", "moved", "proved",
    "journaled", "committed", "waves done", "putting back", "put back",
)  # fmt: skip
BACK = (
    "aliasing", "turned", "guarding", "guarded", "held", "moved", "proved", "restored", "journaled", "committed",
    "rolled back", "putting back", "put back",
)  # fmt: skip
FINALIZING = ("finalized", "removing")
# Of a backup and a rehearsal: they write to files and copies only.
COPYING = ("fingerprinted", "dumped", "restored", "rehearsed")
NAMES = frozenset(FORWARD + BACK + FINALIZING + COPYING)

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
