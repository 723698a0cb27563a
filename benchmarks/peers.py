"""The peers of map calls, all behind one interface, each used as its own manual shows.

Imports nothing but the standard library before a peer is started: a process that runs `main` shows
how long a peer takes from nothing to its first result.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from . import work

ROOT = Path(__file__).resolve().parents[1]
WINDOW = 64  # tasks ahead at a worker, where they are kept so by hand
PLAIN = (int, type(None))  # types that every peer sends as they are
Call = Callable[[Any], list[Any]]


class Address(NamedTuple):
    """Where workers start: a host as an ssh_config of the benchmark's own describes it."""

    config: str
    name: str
    python: str
    port: int = 22
    key: str = ""
    known_hosts: str = ""


class Peer(Protocol):
    """W warm workers of one tool; they end with the stack that it was given."""

    def __init__(self, stack: ExitStack, host: Address, workers: int): ...

    def hold(self, parts: Sequence[Any]) -> None:
        """Worker i holds parts i, i + W, … from now on, and nothing else. They are there when
        this returns."""
        ...

    def ready(self, function: str) -> Call:
        """A function of params: calls work.<function>(params, held) at each worker, all at once.

        Its list of answers is in the order of the workers."""
        ...


def pack(value: Any) -> Any:
    return value if type(value) in PLAIN else pickle.dumps(value, 5)


def unpack(value: Any) -> Any:
    return pickle.loads(value) if type(value) is bytes else value


# --- execnet -----------------------------------------------------------------------------------

_EXECNET = f"""
import os, sys
os.environ.update(OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1")
sys.path.insert(0, {str(ROOT)!r})
from benchmarks import work
from benchmarks.peers import pack, unpack
while True:
    what, name = channel.receive()
    if what == "forget":
        work.forget()
    elif what == "hold":
        work.hold(unpack(channel.receive()))
        channel.send(None)
    else:
        function = getattr(work, name)
        for params in channel:
            if type(params) is str:
                break
            channel.send(pack(function(unpack(params), work.HELD)))
"""


class Execnet:
    """One SSH connection per worker. Its ssh is told to compress, unless `compress` is False."""

    compress = True

    def __init__(self, stack: ExitStack, host: Address, workers: int):
        import execnet
        from execnet import gateway_io

        plain, before = self._ssh_args, gateway_io.ssh_args
        self._group = execnet.Group()
        stack.callback(self._group.terminate, 5.0)
        self._channels = []
        if not self.compress:
            gateway_io.ssh_args = plain(before)
        try:
            for _ in range(workers):
                where = f"ssh=-F {host.config} {host.name}//python={host.python}"
                self._channels.append(self._group.makegateway(where).remote_exec(_EXECNET))
        finally:
            gateway_io.ssh_args = before
        self._serving = False

    @staticmethod
    def _ssh_args(before: Callable[[Any], list[str]]) -> Callable[[Any], list[str]]:
        return lambda spec: [word for word in before(spec) if word != "-C"]

    def _tell(self, what: str, name: str = "") -> None:
        for channel in self._channels:
            if self._serving:
                channel.send("")
            channel.send((what, name))
        self._serving = what == "serve"

    def hold(self, parts: Sequence[Any]) -> None:
        self._tell("forget")
        for index, part in enumerate(parts):
            channel = self._channels[index % len(self._channels)]
            channel.send(("hold", ""))
            channel.send(pickle.dumps(part, 5))
        for index, _ in enumerate(parts):
            self._channels[index % len(self._channels)].receive()

    def ready(self, function: str) -> Call:
        self._tell("serve", function)
        channels = self._channels

        def call(params: Any) -> list[Any]:
            data = pack(params)
            for channel in channels:
                channel.send(data)
            return [unpack(channel.receive()) for channel in channels]

        return call


class ExecnetUncompressed(Execnet):
    compress = False


# --- mitogen -----------------------------------------------------------------------------------


def mitogen_hold(data: Any) -> None:
    work.hold(pickle.loads(bytes(data)))


def mitogen_call(function: str, params: Any) -> Any:
    from mitogen.core import Blob

    if isinstance(params, Blob):
        params = pickle.loads(bytes(params))
    value = work.call(function, params)
    return value if type(value) in PLAIN else Blob(pickle.dumps(value, 5))


class Mitogen:
    """One SSH connection per worker, compressing unless `compress` is False."""

    compress = True

    def __init__(self, stack: ExitStack, host: Address, workers: int):
        from mitogen.core import Blob
        from mitogen.master import Broker, Router

        self._blob = Blob
        router = Router(Broker(), max_message_size=1 << 30)
        stack.callback(router.broker.join)
        stack.callback(router.broker.shutdown)
        self._contexts = [
            router.ssh(
                hostname=host.name, python_path=host.python, ssh_args=["-F", host.config],
                check_host_keys="enforce", compression=self.compress, keepalive_enabled=False,
            )
            for _ in range(workers)
        ]  # fmt: skip

    def hold(self, parts: Sequence[Any]) -> None:
        for context in self._contexts:
            context.call(work.forget)
        waiting = [
            self._contexts[index % len(self._contexts)].call_async(
                mitogen_hold, self._blob(pickle.dumps(part, 5))
            )
            for index, part in enumerate(parts)
        ]
        for receiver in waiting:
            receiver.get().unpickle()

    def ready(self, function: str) -> Call:
        def call(params: Any) -> list[Any]:
            data = params if type(params) in PLAIN else self._blob(pickle.dumps(params, 5))
            waiting = [
                context.call_async(mitogen_call, function, data) for context in self._contexts
            ]
            answers = [receiver.get().unpickle() for receiver in waiting]
            return [
                pickle.loads(bytes(answer)) if isinstance(answer, self._blob) else answer
                for answer in answers
            ]

        return call


class MitogenUncompressed(Mitogen):
    compress = False


# --- dask --------------------------------------------------------------------------------------


class Dask:
    """Scheduler and workers as processes of their own, over bare TCP: nothing is encrypted."""

    def __init__(self, stack: ExitStack, host: Address, workers: int):
        from dask import config
        from distributed import Client

        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="jam-bench-dask-"))
        config.set({"temporary-directory": folder})
        os.environ["DASK_TEMPORARY_DIRECTORY"] = folder  # of scheduler and workers
        logging.getLogger("distributed.deploy.ssh").setLevel(logging.WARNING)
        cluster = stack.enter_context(self._cluster(host, workers))
        self.client = stack.enter_context(Client(cluster))
        self.client.wait_for_workers(workers, timeout=60)
        self._names = list(self.client.scheduler_info(n_workers=-1)["workers"])
        self._held: list[list[Any]] = [[] for _ in self._names]

        def find_us(root: str) -> None:  # an inner function travels by value
            os.environ.update(OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1")
            sys.path.insert(0, root)

        self.client.run(find_us, str(ROOT))
        self.client.run_on_scheduler(find_us, str(ROOT))

    def _cluster(self, host: Address, workers: int) -> Any:
        from distributed.deploy.subprocess import SubprocessCluster

        return SubprocessCluster(
            n_workers=workers, threads_per_worker=1, dashboard_address=None,
            worker_kwargs={"memory_limit": 0}, worker_class="distributed.Worker",
        )  # fmt: skip

    def hold(self, parts: Sequence[Any]) -> None:
        self._held = [[] for _ in self._names]
        for index, part in enumerate(parts):
            where = index % len(self._names)
            future = self.client.scatter(
                part, workers=[self._names[where]], direct=True, hash=False
            )
            self._held[where].append(future)

    def ready(self, function: str) -> Call:
        from distributed import wait

        submit, places = self.client.submit, list(zip(self._names, self._held, strict=True))

        def call(params: Any) -> list[Any]:
            if type(params) not in PLAIN:
                params = self.client.scatter(params, broadcast=True, hash=False)
                wait(params)
            return self.client.gather(
                [
                    submit(work.call_with, function, params, *held, workers=[name], pure=False)
                    for name, held in places
                ]
            )

        return call

    def map(self, function: Callable[[Any], Any], items: Sequence[Any]) -> Iterable[Any]:
        """Each item a task of its own; results in order."""
        return self.client.gather(self.client.map(function, items, pure=False))


class DaskSSH(Dask):
    """Scheduler and one process of workers started by SSH, as SSHCluster does it."""

    def _cluster(self, host: Address, workers: int) -> Any:
        from distributed import SSHCluster

        return SSHCluster(
            ["127.0.0.1", "127.0.0.1"],
            connect_options={
                "port": host.port, "client_keys": [host.key], "known_hosts": host.known_hosts,
            },
            worker_options={"nthreads": 1, "n_workers": workers},
            scheduler_options={"port": 0, "dashboard": False},
            remote_python=host.python,
        )  # fmt: skip


# --- ipyparallel -------------------------------------------------------------------------------


def _ipyparallel_call(function: str, params: Any) -> Any:
    from benchmarks import work

    return work.call(function, params)


def _ipyparallel_hold(parts: Any) -> None:
    from benchmarks import work

    work.forget()
    for part in parts:
        work.hold(part)


class IPyParallel:
    """A controller and engines on this machine, over bare TCP."""

    def __init__(self, stack: ExitStack, host: Address, workers: int):
        import ipyparallel

        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="jam-bench-ipython-"))
        os.environ["IPYTHONDIR"] = folder  # its own, not the user's
        self._cluster = self._new(ipyparallel, host, workers)
        client = stack.enter_context(self._cluster)
        client.wait_for_engines(workers, timeout=60)
        self._client = client
        self._view = client[:]
        self._view.execute(f"import sys; sys.path.insert(0, {str(ROOT)!r})", block=True)

    def _new(self, ipyparallel: Any, host: Address, workers: int) -> Any:
        return ipyparallel.Cluster(n=workers, log_level=40, controller_ip="127.0.0.1")

    def hold(self, parts: Sequence[Any]) -> None:
        count = len(self._view)
        waiting = [
            self._client[self._view.targets[index]].apply_async(
                _ipyparallel_hold, parts[index::count]
            )
            for index in range(count)
        ]
        for result in waiting:
            result.get()

    def ready(self, function: str) -> Call:
        return lambda params: self._view.apply_sync(_ipyparallel_call, function, params)

    def map(self, function: Callable[[Any], Any], items: Sequence[Any]) -> Iterable[Any]:
        return self._client.load_balanced_view().map_sync(function, items, chunksize=1)


class IPyParallelSSH(IPyParallel):
    """A controller here, engines started by SSH."""

    def _new(self, ipyparallel: Any, host: Address, workers: int) -> Any:
        from traitlets.config import Config

        config = Config()
        config.SSHEngineSetLauncher.engines = {host.name: workers}
        config.SSHLauncher.ssh_args = ["-F", host.config]
        config.SSHLauncher.scp_args = ["-F", host.config]
        config.SSHLauncher.remote_python = host.python
        return ipyparallel.Cluster(
            engines="ssh", n=workers, config=config, log_level=40, controller_ip="127.0.0.1"
        )


# --- without a network -------------------------------------------------------------------------


class Pool:
    """multiprocessing.Pool. It has no way to say which worker holds what."""

    def __init__(self, stack: ExitStack, host: Address, workers: int):
        import multiprocessing

        self._pool = stack.enter_context(multiprocessing.get_context("fork").Pool(workers))
        self._workers = workers

    def hold(self, parts: Sequence[Any]) -> None:
        raise TypeError("a Pool's workers hold nothing")

    def ready(self, function: str) -> Call:
        starmap, workers = self._pool.starmap, self._workers
        return lambda params: starmap(work.call, [(function, params)] * workers, 1)


_PIPES = f"""
import os, pickle, struct, sys
os.environ.update(OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1")
sys.path.insert(0, {str(ROOT)!r})
from benchmarks import work
source, sink = sys.stdin.buffer, sys.stdout.buffer
while True:
    head = source.read(8)
    if not head:
        break
    name, value = pickle.loads(source.read(struct.unpack("<Q", head)[0]))
    if name in ("hold", "forget"):
        value = getattr(work, name)(*value)
    else:
        value = work.call(name, value)
    data = pickle.dumps(value, 5)
    sink.write(struct.pack("<Q", len(data)) + data)
    sink.flush()
"""


class Pipes:
    """The limit: local processes behind plain pipes, pickles with their length in front."""

    def __init__(self, stack: ExitStack, host: Address, workers: int):
        self._processes = []
        for _ in range(workers):
            process = subprocess.Popen(
                [host.python, "-c", _PIPES], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            stack.callback(_end, process)
            self._processes.append(process)

    @staticmethod
    def _send(process: subprocess.Popen[bytes], value: Any) -> None:
        data = pickle.dumps(value, 5)
        assert process.stdin is not None
        process.stdin.write(struct.pack("<Q", len(data)) + data)
        process.stdin.flush()

    @staticmethod
    def _receive(process: subprocess.Popen[bytes]) -> Any:
        assert process.stdout is not None
        (size,) = struct.unpack("<Q", process.stdout.read(8))
        return pickle.loads(process.stdout.read(size))

    def hold(self, parts: Sequence[Any]) -> None:
        for process in self._processes:
            self._send(process, ("forget", ()))
            self._receive(process)
        for index, part in enumerate(parts):
            process = self._processes[index % len(self._processes)]
            self._send(process, ("hold", (part,)))
            self._receive(process)

    def ready(self, function: str) -> Call:
        processes = self._processes

        def call(params: Any) -> list[Any]:
            for process in processes:
                self._send(process, (function, params))
            return [self._receive(process) for process in processes]

        return call


def _end(process: subprocess.Popen[bytes]) -> None:
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


PEERS: dict[str, type[Peer]] = {
    "execnet": Execnet,
    "execnet-uncompressed": ExecnetUncompressed,
    "mitogen": Mitogen,
    "mitogen-uncompressed": MitogenUncompressed,
    "dask": Dask,
    "dask-ssh": DaskSSH,
    "ipyparallel": IPyParallel,
    "ipyparallel-ssh": IPyParallelSSH,
    "pool": Pool,
    "pipes": Pipes,
}


@contextlib.contextmanager
def started(name: str, host: Address, workers: int) -> Iterator[Peer]:
    with ExitStack() as stack:
        yield PEERS[name](stack, host, workers)


def main() -> None:
    """From nothing to the first result: NAME WORKERS, and the words of an Address."""
    name, workers, config, host, python, port, key, known_hosts = sys.argv[1:]
    where = Address(config, host, python, int(port), key, known_hosts)
    with started(name, where, int(workers)) as peer:
        print(sum(peer.ready("plus_one")(1)))
