"""What every command waits for when it starts, and holds in memory to its end."""

import subprocess
import sys

# Each is a large part of a second and tens of megabytes; few commands need one, and those import it themselves.
HEAVY = ("apprise", "matplotlib", "numpy", "pandas", "pyarrow")


def test_a_command_starts_without_the_heavy_libraries() -> None:
    program = (
        "import sys, warnings; warnings.simplefilter('ignore');"
        "import uuid_pipeline.cli.main, uuid_pipeline.definitions;"
        f"print(*[name for name in {HEAVY} if name in sys.modules])"
    )
    started = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert started.stdout.split() == []
