"""A pod's jobs, one at a time: where each runs, with what, where its output goes, how it ended."""

import errno
import os
import time
from typing import Any, Callable, Dict, List, Optional, Tuple

from worker_payload.jobs import commands, lines, mapping, names, process
from worker_payload.jobs.lines import Plan, Result
from worker_payload.jobs.names import Pod

_MEDIAN_OF = 101  # how many of the last jobs that ended well decide what is late
_MEDIAN_FROM = 3


class Runner(object):
    """root: the project's folder. hired: the directory in which the workers were hired. environ: of
    all jobs. Runs jobs in the present process's children; changes its working directory."""

    def __init__(self, root, project, owner, hired, environ):
        # type: (str, str, str, str, Dict[bytes, bytes]) -> None
        self.processes = process.Processes()
        self._root = root
        self._owner = owner
        self._hired = hired
        self._environ = dict(environ)
        self._environ[b"JAM_PROJECT"] = project.encode("ascii")
        self._out = _open(os.path.join(root, names.output(owner, "out")))
        self._err = _open(os.path.join(root, names.output(owner, "err")))
        self._at = None  # type: Optional[str]
        self._programs = {}  # type: Dict[Tuple[str, Optional[str]], str]
        self._seconds = {}  # type: Dict[str, List[float]]  # of jobs that ended well, by submission

    def close(self):
        # type: () -> None
        os.close(self._out)
        os.close(self._err)

    def prepare(self, pod, plan):
        # type: (Pod, Plan) -> Jobs
        """Ready to run the jobs of this pod."""
        return Jobs(self, pod, plan)

    def _go(self, cwd):
        # type: (str) -> None
        """Raises OSError."""
        cwd = os.path.join(self._hired, cwd)
        if cwd != self._at:
            self._at = None
            os.chdir(cwd)
            self._at = cwd

    def _program(self, word, path, again=False):
        # type: (str, Optional[str], bool) -> str
        key = word, path
        found = self._programs.get(key)
        if found is None or again:
            if len(self._programs) > 1000:
                self._programs.clear()
            found = self._programs[key] = process.find(word, path, "")
        return found

    def _late(self, plan):
        # type: (Plan) -> float
        """Seconds that a job may take, 0 for any."""
        if not plan.percent:
            return plan.timeout
        known = self._seconds.get(plan.submission, ())
        if len(known) < _MEDIAN_FROM:
            return 0.0
        return max(sorted(known)[len(known) // 2] * plan.percent / 100.0, 0.001)

    def _learn(self, plan, result):
        # type: (Plan, Result) -> None
        if plan.percent and not result.failed:
            if len(self._seconds) > 100:
                self._seconds.clear()
            known = self._seconds.setdefault(plan.submission, [])
            known.append(result.seconds)
            del known[:-_MEDIAN_OF]


class Jobs(object):
    """The jobs of one pod. path: of a dropped job's file, "" for others."""

    def __init__(self, runner, pod, plan):
        # type: (Runner, Pod, Plan) -> None
        self._runner = runner
        self._pod = pod
        self._plan = plan
        self._name = ""
        self.path = ""
        environ = self._environ = dict(runner._environ)
        environ[b"JAM_SUBMISSION"] = plan.submission.encode("ascii")
        for key, value in plan.env:
            environ[os.fsencode(key)] = os.fsencode(value)
        if plan.kind == "drop":
            self._name = os.fsdecode(bytes(bytearray.fromhex(plan.name)))
            folder = os.path.join(runner._root, names.ticket_folder(pod.ticket))
            self.path = os.path.join(folder, self._name)
            environ[b"JAM_JOB"] = os.fsencode(self._name)
            environ[b"JAM_JOB_FILE"] = os.fsencode(self.path)
        path = environ.get(b"PATH")
        self._path = os.fsdecode(path) if path is not None else None

    def label(self, index):
        # type: (int) -> str
        """What people call the job."""
        return self._name or "job%d" % (self._plan.first + index)

    def command(self, index, params):
        # type: (int, List[str]) -> str
        """For the log."""
        return commands.shown(self._plan, params, self._plan.first + index, self.path)

    def run(self, index, params, tries, meanwhile=None):
        # type: (int, List[str], int, Optional[Callable[[], None]]) -> Result
        """How the job ended; a job that could not be started has failed too. tries: which one this
        is. meanwhile: as in Processes.run."""
        runner, plan, environ = self._runner, self._plan, self._environ
        number = plan.first + index
        if not self._name:
            environ[b"JAM_JOB"] = b"%d" % number
        environ[b"JAM_TRY"] = b"%d" % tries
        began = time.time()
        out = err = -1
        try:
            try:
                runner._go(plan.cwd)
            except OSError as error:
                message = "cannot run in %s: %s" % (plan.cwd, error.strerror)
                return _unable(began, tries, message, 126)
            if plan.kind == "map":
                return self._map(int(params[0]), began, tries, meanwhile)
            argv = list(commands.expand(plan, params, number, self.path))
            if plan.logfile:
                try:
                    log = commands.fill(plan, plan.logfile, params, number)
                    os.makedirs(os.path.dirname(log) or ".", exist_ok=True)
                    out = err = _open(log, 0o666)
                except (OSError, ValueError) as error:
                    why = getattr(error, "strerror", None) or error
                    return _unable(began, tries, "cannot write to its log file: %s" % why, 126)
            elif self._name:
                ticket, root = self._pod.ticket, runner._root
                out = _open(os.path.join(root, names.job_output(ticket, "out")))
                err = _open(os.path.join(root, names.job_output(ticket, "err")))
            else:
                out, err = runner._out, runner._err
            result = self._run(argv, began, tries, out, err, meanwhile)
        finally:
            if out >= 0 and out != runner._out:
                os.close(out)
                if err != out and err >= 0:
                    os.close(err)
        if plan.percent:
            runner._learn(plan, result)
        return result

    def _map(self, index, began, tries, meanwhile):
        # type: (int, float, int, Any) -> Result
        """A slice of a map call: its answer lies in a file, which the result names."""
        runner = self._runner
        folder = os.path.join(runner._root, names.map_call(self._plan.name))
        pointer = mapping.pointer(folder, index, runner._owner)
        argv = mapping.command(folder, index, pointer)
        result = self._run(argv, began, tries, runner._out, runner._err, meanwhile)
        return result if result.failed else result._replace(data=mapping.follow(pointer))

    def _run(self, argv, began, tries, out, err, meanwhile):
        # type: (List[str], float, int, int, int, Any) -> Result
        runner, plan = self._runner, self._plan
        out_from, err_from = os.lseek(out, 0, os.SEEK_END), os.lseek(err, 0, os.SEEK_END)
        word = argv[0]
        argv[0] = runner._program(word, self._path)
        timeout = runner._late(plan)
        try:
            try:
                ended = runner.processes.run(argv, self._environ, out, err, timeout, meanwhile)
            except OSError as error:
                if error.errno != errno.ENOENT:
                    raise
                argv[0] = runner._program(word, self._path, True)  # it may have moved in the path
                ended = runner.processes.run(argv, self._environ, out, err, timeout, meanwhile)
        except OSError as error:
            why = error.strerror or str(error)
            return _unable(began, tries, "%s: %s" % (word, why), process.failure(error))
        except ValueError as error:
            return _unable(began, tries, "%s: %s" % (word, error), 126)
        out_to, err_to = os.lseek(out, 0, os.SEEK_END), os.lseek(err, 0, os.SEEK_END)
        failed = ended.exit != 0 or ended.late
        return Result(
            ended.exit,
            ended.signal,
            began,
            ended.seconds,
            ended.memory,
            ended.cpu,
            tries,
            "timeout" if ended.late else "",
            (0, 0) if plan.logfile else (out_from, out_to),
            (0, 0) if plan.logfile else (err_from, err_to),
            process.last_line(err, err_from, err_to) if failed else "",
        )


def _unable(began, tries, message, status):
    # type: (float, int, str, int) -> Result
    return Result(status, 0, began, 0.0, tries=tries, reason="spawn", last=message[-200:])


def _open(path, mode=0o600):
    # type: (str, int) -> int
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, mode)
