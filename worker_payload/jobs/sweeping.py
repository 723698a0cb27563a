"""Giving up the claims of an owner who is known to be dead."""

from worker_payload.jobs import files, names, steps


def give_up(root, owner):
    # type: (str, str) -> int
    """All that it held waits again, and its heartbeat goes. Returns how many pods there were.
    Raises files.Trouble."""
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
