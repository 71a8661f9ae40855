"""Runs a learner's cells in a process of its own, for `report`, which may kill it at any time.

    python -m interp_edu.checks.worker JOB RESULTS

JOB holds the cells as JSON, a list of [number, source]; a line of JSON is appended to RESULTS when
a cell starts and when it ends. What the cells print goes wherever stdout goes: it is not a result.
"""

import json
import sys
from pathlib import Path


def main(job: str, out: str) -> None:
    """Runs the cells in order in one namespace, as a notebook would, going on after errors."""
    from IPython.core.interactiveshell import InteractiveShell

    from interp_edu.checks import core

    shell = InteractiveShell.instance()
    with open(out, "a", encoding="utf-8") as results:

        def tell(**what: object) -> None:
            results.write(json.dumps(what) + "\n")
            results.flush()

        for number, source in json.loads(Path(job).read_text(encoding="utf-8")):
            tell(cell=number, event="start")
            core.results.clear()
            outcome = shell.run_cell(source)
            error = outcome.error_before_exec or outcome.error_in_exec
            trouble = (
                "" if error is None else f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            )
            tell(cell=number, event="end", trouble=trouble.rstrip(": "), results=dict(core.results))


if __name__ == "__main__":
    main(*sys.argv[1:])
