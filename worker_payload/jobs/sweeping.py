"""Giving up the claims of owners who are dead."""

import time
from typing import Callable, Dict, List, Sequence

from worker_payload.jobs import files, leases, names, steps, view
from worker_payload.jobs.names import Pod

_TURN = 240.0  # seconds for which one host watches an owner, more than two leases


def give_up(root, owner):
    # type: (str, str) -> int
    """All that an owner held, who is known to be dead, waits again, and its heartbeat goes. Returns
    how many pods there were. Raises files.Trouble."""
    project = files.Files(root)
    count = 0
    try:
        for name in project.do(steps.List(names.CLAIMED)):
            pod = names.read_pod(name)
            if pod is not None and pod.owner == owner:
                count += project.run(steps.sweep(pod, names.new_cut())) is not None
        project.do(steps.Remove(names.heartbeat(owner)))
    finally:
        project.close()
    return count


class Watch(object):
    """What an idle worker does for the project: it looks whether other owners are alive, as a
    dispatcher does, so that nothing waits for one. host: of this worker. lease: seconds."""

    def __init__(self, project_files, host, lease, say):
        # type: (files.Files, str, float, Callable[[str], None]) -> None
        self._files = project_files
        self._host = host
        self._lease = lease
        self._leases = leases.Leases(lease)
        self._say = say
        self.every = lease / 6

    def look(self, hosts):
        # type: (Sequence[str]) -> None
        """To be called again and again. hosts: that have workers; they share the work."""
        claims = {}  # type: Dict[str, List[Pod]]
        for name in self._files.do(steps.List(names.CLAIMED)):
            pod = names.read_pod(name)
            if pod is not None and self._is_ours(pod.owner, hosts):
                claims.setdefault(pod.owner, []).append(pod)
        self._leases.forget(claims)
        for owner, pods in claims.items():
            beat = self._files.do(steps.Read(names.heartbeat(owner)))
            for pod in self._leases.look(owner, beat, pods, time.monotonic()):
                if self._files.run(steps.sweep(pod, names.new_cut())) is not None:
                    self._say("no sign of life of %s: %s waits again" % (owner, pod.pod))

    def _is_ours(self, owner, hosts):
        # type: (str, Sequence[str]) -> bool
        """Whether it is this host's turn to watch the owner: never its own host alone."""
        try:
            own = names.read_owner(owner)[0]
        except ValueError:
            return True
        others = [host for host in hosts if host != own]
        if not others:
            return True
        turn = int(time.time() / max(_TURN, 3 * self._lease))
        return view.home_of("%s %d" % (owner, turn), others) == self._host
