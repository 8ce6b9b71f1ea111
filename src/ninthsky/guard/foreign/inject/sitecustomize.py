"""Read by every Python process that `n9 guard run` starts, before its script. Costs nothing where torch is not imported.

The folder of this file stands first on PYTHONPATH. A sitecustomize that stood there before is run as if this one were not.
"""

import importlib.machinery
import importlib.util
import os
import sys


def _chain() -> None:
    here = os.path.dirname(os.path.abspath(__file__))
    elsewhere = [path for path in sys.path if os.path.abspath(path or ".") != here]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", elsewhere)
    if spec is None or spec.loader is None:
        return
    module = importlib.util.module_from_spec(spec)
    sys.modules["sitecustomize"] = module
    spec.loader.exec_module(module)


def _wait_for_torch() -> None:
    sys.path.append(os.environ["N9_SOURCE"])  # last: whatever the script's own environment has comes first
    try:
        from ninthsky.guard.foreign.hooks import install
    except ImportError as error:
        reason = f"{error}; `pip install ninthsky` into {sys.executable} gives the probe"
        print(f"n9: not watched from within: {reason}", file=sys.stderr)
    else:
        install()


_chain()
if os.environ.get("N9_RANKS"):
    _wait_for_torch()
