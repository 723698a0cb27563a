"""qjam's experiment: one evaluation of the sparse autoencoder's cost, 1k patches, W workers.

qjam (2010) took 146 / 263 / 997 ms with 1 / 4 / 16 workers, nearly all of it coordination. Peers
in the same run, same work, same slices: execnet over the same sshd; plain pipes to W local
processes are the limit. One slice per worker, each worker's slice sent before the clock starts.
"""

from __future__ import annotations

import os
import pickle
import struct
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy

from examples import sparse_autoencoder
from jamtasks import DataSet, Master

from . import common

ITERATIONS, BURST = 80, 10
WORKERS = (1, 4, 16)
PATCHES = 1000
ROOT = Path(__file__).resolve().parents[1]
WORKER = f"""
import os, pickle, struct, sys
os.environ.update(OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1")
sys.path.insert(0, {str(ROOT)!r})
from examples.sparse_autoencoder import mapfunc
source, sink = sys.stdin.buffer, sys.stdout.buffer
def take():
    head = source.read(8)
    if not head:
        sys.exit()
    size, = struct.unpack("<Q", head)
    return pickle.loads(source.read(size))
patches = take()
while True:
    data = pickle.dumps(mapfunc(take(), patches), 5)
    sink.write(struct.pack("<Q", len(data)) + data)
    sink.flush()
"""
EXECNET_WORKER = f"""
import os, sys
os.environ.update(OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1")
sys.path.insert(0, {str(ROOT)!r})
import pickle
from examples.sparse_autoencoder import mapfunc
patches = pickle.loads(channel.receive())
channel.send(None)
for theta in channel:
    channel.send(pickle.dumps(mapfunc(pickle.loads(theta), patches), 5))
"""


def pipes(stack: ExitStack, host: common.Host, workers: int, patches: numpy.ndarray, theta):
    processes = []

    def send(process, value):
        data = pickle.dumps(value, 5)
        process.stdin.write(struct.pack("<Q", len(data)) + data)
        process.stdin.flush()

    def receive(process):
        (size,) = struct.unpack("<Q", process.stdout.read(8))
        return pickle.loads(process.stdout.read(size))

    for part in numpy.array_split(patches, workers):
        process = subprocess.Popen(
            [sys.executable, "-c", WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        stack.callback(common.end, process)
        send(process, part)
        processes.append(process)

    def go():
        for process in processes:
            send(process, theta)
        total = receive(processes[0])
        for process in processes[1:]:
            total = total + receive(process)
        return total

    return go


def execnet(stack: ExitStack, host: common.Host, workers: int, patches: numpy.ndarray, theta):
    import execnet as library

    group = library.Group()
    stack.callback(group.terminate, 5.0)
    channels = []
    for part in numpy.array_split(patches, workers):
        gateway = group.makegateway(f"ssh=-F {host.config} {host.name}//python={host.python}")
        channel = gateway.remote_exec(EXECNET_WORKER)
        channel.send(pickle.dumps(part, 5))
        channel.receive()
        channels.append(channel)

    def go():
        data = pickle.dumps(theta, 5)
        for channel in channels:
            channel.send(data)
        total = pickle.loads(channels[0].receive())
        for channel in channels[1:]:
            total = total + pickle.loads(channel.receive())
        return total

    return go


def jam(transport: str):
    def start(stack: ExitStack, host: common.Host, workers: int, patches: numpy.ndarray, theta):
        master = stack.enter_context(Master([host.spec(transport, workers)], f"auto{workers}"))
        data = DataSet(patches)
        size = -(-len(patches) // workers)

        def go():
            return master.run(sparse_autoencoder, theta, data, slice_size=size)

        return go

    return start


CONTENDERS: dict[str, Callable] = {
    "plain pipes (limit)": pipes,
    "jam, openssh": jam("openssh"),
    "jam, fabric": jam("fabric"),
    "execnet": execnet,
}


def main() -> None:
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    patches, theta = sparse_autoencoder.digits(PATCHES), sparse_autoencoder.start()
    expected = sparse_autoencoder.mapfunc(theta, patches)
    rows = {name: [name] for name in CONTENDERS}
    with common.host() as host:
        for workers in WORKERS:
            with ExitStack() as stack:
                goes = {
                    name: start(stack, host, workers, patches, theta)
                    for name, start in CONTENDERS.items()
                }
                for name, go in goes.items():
                    if not numpy.allclose(go(), expected):
                        raise SystemExit(f"{name} computes something else")
                medians = common.interleaved(goes, ITERATIONS, BURST)
                for name, seconds in medians.items():
                    ratio = seconds / medians["plain pipes (limit)"]
                    rows[name].append(f"{seconds * 1e3:.1f} ({ratio:.2f})")
    common.table(
        "Sparse autoencoder, 1k patches, ms per evaluation (ratio to plain pipes in this run)",
        ["", *(f"{workers} workers" for workers in WORKERS)],
        [*rows.values(), ["qjam, 2010", "146", "263", "997"]],
    )


if __name__ == "__main__":
    main()
