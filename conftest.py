"""Keeps every test and notebook offline, also when pytest is called by hand rather than by `make test`."""

import importlib.util
import os
from pathlib import Path

OFFLINE = Path(__file__).parent / "tests" / "offline"

# Children (workers, kernels, the command line) find the guard by themselves; in this process it is run here.
paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
if str(OFFLINE) not in paths:
    os.environ["PYTHONPATH"] = os.pathsep.join([str(OFFLINE), *filter(None, paths)])
spec = importlib.util.spec_from_file_location("offline_guard", OFFLINE / "sitecustomize.py")
spec.loader.exec_module(importlib.util.module_from_spec(spec))
