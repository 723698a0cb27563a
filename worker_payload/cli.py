"""What this payload can be asked on a host: python FOLDER VERB ...

    attach MARKER PROJECT [local] [keep]   become the channel to the project's agent
    fire MARKER PROJECT                    end the project's agents and job workers here
    hire MARKER PROJECT                    start job workers
    probe MARKER PROJECT                   say what this host is
    serve PROJECT [last]                   keeper and agent; what attach starts
    work PROJECT NUMBER                    keeper and job worker; what hire starts
    slice FOLDER INDEX POINTER             map one slice of a call that is done by job workers

MARKER announces what the master should read: MARKER:R before it, or MARKER:X and why not. fire and
hire then read one line of JSON, what exactly is wanted. Their answer is one line of JSON too; one
with "error" (and "hint") says why there is no other.
"""

import os
import sys

from worker_payload import layout

TYPE_CHECKING = False  # typing takes longer to import than all of this
if TYPE_CHECKING:
    from typing import Any, Dict, List, Optional

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
    if verb == "work" and len(arguments) == 2:
        from worker_payload.jobs import work

        return work.work(layout.run_dir(), _project(arguments[0]), int(arguments[1]))
    if verb == "slice" and len(arguments) == 3:
        from worker_payload.jobs import mapping

        return mapping.main(arguments[0], int(arguments[1]), arguments[2])
    if verb not in ("attach", "fire", "hire", "probe") or len(arguments) < 2:
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

    if verb == "probe":
        from worker_payload import probe

        answer = probe.probe(run)
        _write("\n%s:R\n" % marker)
    else:
        _write("\n%s:R\n" % marker)
        answer = _answer(verb, run, project, _request())
    _write(json.dumps(answer) + "\n")
    return 1 if "error" in answer else 0


def _answer(verb, run, project, request):
    # type: (str, layout.RunDir, str, Dict[str, Any]) -> Dict[str, Any]
    from worker_payload.jobs import files, hire

    try:
        if verb == "hire":
            return hire.hire(run, project, request)
        from worker_payload import fire

        wanted = dict((key, bool(request[key])) for key in ("agents", "workers", "drain")
                      if key in request)  # fmt: skip
        return fire.fire(run, project, **wanted)
    except hire.HireError as error:
        return {"error": str(error), "hint": error.hint}
    except (OSError, files.Trouble) as error:
        return {"error": "%s failed: %s" % (verb, error), "hint": None}


def _request():
    # type: () -> Dict[str, Any]
    """The line of JSON that the master sends when it has seen the marker; {} if it sends none."""
    import json

    data = b""
    while not data.endswith(b"\n") and len(data) < 1 << 20:
        more = os.read(0, 1 << 16)
        if not more:
            break
        data += more
    try:
        found = json.loads(data.decode("ascii"))
    except ValueError:
        found = {}
    return found if type(found) is dict else {}


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
