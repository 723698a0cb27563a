"""A slice of a map call as a job: one process that maps it, and leaves its answer in a file.

A map call's folder, results/data/<call>/, holds `about` (JSON: module, writable), `code`, `params`
and `in-<index>`, each a blob as codec.py makes them. Answers are `out-<digest>`, written whole or
not at all; the result line of the job names the digest. What an exception was is in `err-<index>`.
"""

import json
import os
import sys
from typing import Any, List

from worker_payload import layout

ABOUT, CODE, PARAMS = "about", "code", "params"


def given(index):
    # type: (int) -> str
    """The file with slice `index`; there is none if the call has no dataset."""
    return "in-%d" % index


def answer(digest):
    # type: (str) -> str
    return "out-" + digest


def failure(index):
    # type: (int) -> str
    return "err-%d" % index


def command(folder, index, pointer):
    # type: (str, int, str) -> List[str]
    """What maps a slice. pointer: a file that is to name the answer."""
    from worker_payload import launch

    return launch.command() + ["slice", folder, str(index), pointer]


def pointer(folder, index, owner):
    # type: (str, int, str) -> str
    return os.path.join(folder, "at-%d-%s" % (index, owner))


def follow(path):
    # type: (str) -> str
    """The digest in a pointer, which is then no longer needed; "" if there is none."""
    try:
        with open(path) as handle:
            digest = handle.read()
        os.unlink(path)
    except (OSError, ValueError):
        return ""
    return digest if len(digest) == 64 and digest.isalnum() else ""


def main(folder, index, target):
    # type: (str, int, str) -> int
    """The verb `slice`: 0 and an answer, or 1 and a traceback on stderr."""
    from worker_payload import calls, codec, known, shared, template

    for name in template.THREADS:  # before numpy is imported
        os.environ.setdefault(name, "1")
    with open(os.path.join(folder, ABOUT)) as handle:
        about = json.load(handle)

    def blob(name):
        # type: (str) -> Any
        held = known.Held(os.open(os.path.join(folder, name), os.O_RDONLY | os.O_CLOEXEC))
        value = known.read_blob(held, bool(about["writable"]))
        held.close()
        return value

    try:
        function = calls.load(blob(CODE), about["module"])
        params = blob(PARAMS)
        piece = blob(given(index)) if about["slices"] else None
        result = function(params, shared.load(piece, bool(about["writable"])))
        parts = codec.blob_parts(codec.encode_result(result))
    except BaseException as error:  # user code may raise KeyboardInterrupt and SystemExit too
        described = calls.describe(error)
        _publish(os.path.join(folder, failure(index)), [json.dumps(described).encode("ascii")])
        sys.stdout.flush()
        sys.stderr.write(described[2] or "%s: %s\n" % described[:2])
        return 1
    sys.stdout.flush()
    digest = codec.blob_digest(parts)
    _publish(os.path.join(folder, answer(digest)), parts)
    _publish(target, [digest.encode("ascii")])
    return 0


def _publish(path, parts):
    # type: (str, List[Any]) -> None
    aside = layout.aside(path)
    with open(aside, "wb") as handle:
        for part in parts:
            handle.write(part)
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(aside, path)
