"""What the search sees: ``python -m uuid_pipeline_tests.model`` prints states searched, and each counterexample."""

import sys

from uuid_pipeline_tests.model import cases
from uuid_pipeline_tests.model.application import SCRIPTS


def main() -> None:
    """Search the protocol as it is, then with each fault."""
    every = {
        "forward": cases.forward,
        "round about": cases.round_about,
        "back": cases.back,
        "in two lanes": cases.in_two_lanes,
        "in two lanes and back": cases.in_two_lanes_and_back,
    }
    for name, company in every.items():
        for script in SCRIPTS:
            result = company(script)
            found = result.story or "nothing is lost and nothing dangles"
            sys.stdout.write(f"{name}, while the application {script}: {result.states} states, {found}\n")
    for what, (protocol, script, _) in cases.BROKEN.items():
        result = cases.forward(script, protocol)
        sys.stdout.write(f"\nIf {what}, while the application {script} ({result.states} states):\n{result.story}\n")


if __name__ == "__main__":
    main()
