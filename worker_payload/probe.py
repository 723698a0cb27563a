"""What a host is, for `inv bootstrap` and `inv doctor`."""

import os
import platform
import sys
import time
from typing import Any, Dict

from worker_payload import fire, layout, limits


def probe(run):
    # type: (layout.RunDir) -> Dict[str, Any]
    notes = []
    try:
        import numpy

        version = str(numpy.__version__)
    except ImportError:
        version = ""
    except Exception as error:
        version = ""
        notes.append("numpy does not import: %s" % error)
    try:
        import ctypes  # noqa: F401
    except ImportError:
        notes.append("this Python lacks ctypes: processes that leave their group may stay behind")
    return {
        "python": platform.python_version(),
        "executable": sys.executable,
        "implementation": platform.python_implementation(),
        "numpy": version,
        "cpus": limits.cpus(),
        "agents": [
            {
                "project": item["project"],
                "build": item["build"],
                "pid": item.get("pid", 0),
                "uptime": round(max(time.time() - item.get("started", 0), 0), 1),
            }
            for item in fire.agents(run)
        ],
        "run_dir": run.path,
        "hostname": os.uname()[1],
        "notes": notes,
    }
