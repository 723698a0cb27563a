"""Put ten job files into a project's queue, and say how they are run.

    python examples/jobs/create_jobs.py [PROJECT]
    inv hire 4
    inv dispatch

A job file names what to run; sections other than [control] are the job's own. A file that is made
elsewhere in the same folder and then renamed appears whole, however large it is.
"""

import os
import shlex
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
JOB = """\
[control]
executable: python3 {script}
logfile: logfiles/job{number}.dat

[search]
first: {first}
last: {last}
"""
SIZE = 20000  # numbers that one job looks at: a tenth of a second or so


def main(project="default"):
    queue = os.path.join(
        os.environ.get("JAM_HOME") or os.path.expanduser("~/.jam"), project, "jobqueue"
    )
    os.makedirs(queue, mode=0o700, exist_ok=True)
    for number in range(10):
        path = os.path.join(queue, "job%d.ini" % number)
        aside = os.path.join(queue, ".job%d.tmp" % number)
        with open(aside, "w") as handle:
            handle.write(
                JOB.format(
                    script=shlex.quote(os.path.join(HERE, "collatz.py")),
                    number=number,
                    first=number * SIZE + 1,
                    last=(number + 1) * SIZE,
                )
            )
        os.rename(aside, path)
    print("10 jobs wait in %s; run them with `inv hire 4` and `inv dispatch`" % queue)


if __name__ == "__main__":
    main(*sys.argv[1:])
