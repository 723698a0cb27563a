"""What this payload can be asked on a host: python <build>.pyz VERB ...

    attach MARKER PROJECT [local] [keep]   become the channel to the project's agent
    fire MARKER PROJECT                    end the project's agents here
    probe MARKER PROJECT                   say what this host is
    serve PROJECT [last]                   keeper and agent; what attach starts

MARKER announces what the master should read: MARKER:R before it, or MARKER:X and why not.
"""

import os
import sys
from typing import List, Optional

from worker_payload import layout

try:
    from worker_payload._build import BUILD
except ImportError:
    BUILD = "source"


def main(argv=None):
    # type: (Optional[List[str]]) -> int
    arguments = list(sys.argv[1:] if argv is None else argv)
    verb = arguments.pop(0) if arguments else ""
    if verb == "serve":
        from worker_payload import serve

        return serve.serve(layout.run_dir(), _project(arguments.pop(0)), BUILD, arguments)
    if verb not in ("attach", "fire", "probe") or len(arguments) < 2:
        sys.stderr.write(__doc__ or "")
        return 2
    marker, project = arguments[:2]
    try:
        if not layout.is_project(project):
            return _fail(marker, "%r is no project name" % project, None)
        run = layout.run_dir()
        if verb == "attach":
            from worker_payload import attach

            try:
                return attach.attach(run, project, BUILD, marker, arguments[2:])
            except attach.AttachError as error:
                return _fail(marker, error.message, error.hint)
        return _say(marker, verb, run, project)
    except layout.LayoutError as error:
        return _fail(marker, str(error), "set JAM_RUN_DIR on that host to a directory of your own")
    except OSError as error:
        return _fail(marker, "%s failed: %s" % (verb, error), None)


def exit():
    # type: () -> None
    sys.exit(main())


def _project(name):
    # type: (str) -> str
    if not layout.is_project(name):
        raise SystemExit("jam: %r is no project name" % name)
    return name


def _say(marker, verb, run, project):
    # type: (str, str, layout.RunDir, str) -> int
    import json

    if verb == "fire":
        from worker_payload import fire

        answer = fire.fire(run, project)
    else:
        from worker_payload import probe

        answer = probe.probe(run)
    _write("\n%s:R\n%s\n" % (marker, json.dumps(answer)))
    return 0


def _fail(marker, message, hint):
    # type: (str, str, Optional[str]) -> int
    import binascii
    import json

    text = json.dumps({"message": message, "hint": hint}).encode("ascii")
    _write("\n%s:X%s\n" % (marker, binascii.hexlify(text).decode("ascii")))
    return 1


def _write(text):
    # type: (str) -> None
    data = text.encode("ascii")
    while data:
        data = data[os.write(1, data) :]


if __name__ == "__main__":
    sys.exit(main())
