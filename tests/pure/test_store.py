"""The blob store: what it keeps, what it throws away, and what others may do to its files."""

import errno
import hashlib
import os
import stat
import threading
import time

import pytest

from worker_payload import limits
from worker_payload.budget import StoreFull
from worker_payload.store import Store
from worker_payload.writing import Damaged

KIB = 1024


def blob(size, seed=0):
    data = hashlib.sha256(b"%d" % seed).digest() * (size // 32 + 1)
    return data[:size]


def digest(data):
    return hashlib.sha256(data).hexdigest()


def put(store, data):
    writer = store.begin(digest(data), len(data))
    for start in range(0, len(data), 1000):
        writer.write(start, data[start : start + 1000])
    return writer.commit()


def keep(store, data):
    os.close(put(store, data))


def read(fd):
    try:
        return os.pread(fd, 1 << 24, 0)
    finally:
        os.close(fd)


def files(*directories):
    return sorted(
        os.path.join(folder, name)
        for top in directories
        for folder, _, names in os.walk(str(top))
        for name in names
    )


@pytest.fixture
def make(tmp_path):
    """Opens stores that share their directories, as the agents of one user do."""
    for name in ("run", "shm"):
        (tmp_path / name).mkdir()
    opened = []

    def open_store(ram=64 * KIB, disk=64 * KIB, shm=True):
        store = Store(
            str(tmp_path / "run"),
            str(tmp_path / "cache" / "blobs"),
            str(tmp_path / "shm") if shm else None,
            ram_limit=ram,
            disk_limit=disk,
        )
        opened.append(store)
        return store

    yield open_store
    for store in opened:
        store.close()


@pytest.fixture
def on_ram(tmp_path):
    return lambda: files(tmp_path / "shm")


@pytest.fixture
def on_disk(tmp_path):
    return lambda: files(tmp_path / "cache")


# --- keeping and finding -----------------------------------------------------------------------


def test_a_blob_comes_back_as_it_was_sent(make):
    store, data = make(), blob(5000)
    assert not store.has(digest(data)) and store.open(digest(data)) is None
    assert read(put(store, data)) == data
    assert store.has(digest(data))
    assert read(store.open(digest(data))) == data


def test_an_empty_blob_is_a_blob(make):
    store = make()
    keep(store, b"")
    assert read(store.open(digest(b""))) == b""


def test_agents_share_what_they_hold(make):
    first, second = make(), make()
    keep(first, blob(3000))
    assert read(second.open(digest(blob(3000)))) == blob(3000)


def test_blobs_are_private_and_read_only(make, on_ram):
    store = make()
    fd = put(store, blob(100))
    (path,) = on_ram()
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(os.path.dirname(path)).st_mode) == 0o700
    with pytest.raises(OSError):
        os.write(fd, b"x")
    os.close(fd)


def test_descriptors_do_not_reach_other_programs(make):
    fd = put(make(), blob(100))
    assert not os.get_inheritable(fd)
    os.close(fd)


def test_a_name_that_is_no_digest_is_never_a_path(make, tmp_path):
    store = make()
    (tmp_path / "secret").write_bytes(b"x")
    for name in ("../" * 20 + "etc/passwd", "/etc/passwd", "A" * 64, "0" * 63 + "\n", ""):
        assert not store.has(name) and store.open(name) is None
        store.drop(name)
        with pytest.raises(ValueError):
            store.begin(name, 10)


# --- arriving ----------------------------------------------------------------------------------


def test_bytes_of_another_digest_are_refused(make, on_ram):
    store, data = make(), blob(100)
    writer = store.begin(digest(data), 100)
    writer.write(0, b"!" + data[1:])
    with pytest.raises(Damaged):
        writer.commit()
    assert not store.has(digest(data)) and on_ram() == [] and store.used() == (0, 0)


@pytest.mark.parametrize("offset, size", [(1, 5), (0, 101), (200, 1)])
def test_bytes_that_are_not_next_are_refused(make, offset, size):
    writer = make().begin(digest(blob(100)), 100)
    with pytest.raises(Damaged):
        writer.write(offset, b"x" * size)
    writer.abort()


def test_a_blob_that_ends_early_is_refused(make):
    writer = make().begin(digest(blob(100)), 100)
    writer.write(0, blob(100)[:60])
    with pytest.raises(Damaged):
        writer.commit()


def test_an_aborted_blob_leaves_nothing(make, on_ram):
    store = make()
    writer = store.begin(digest(blob(100)), 100)
    writer.write(0, blob(100)[:60])
    assert store.used() == (100, 0)
    writer.abort()
    writer.abort()
    assert on_ram() == [] and store.used() == (0, 0)


def test_two_writers_of_one_blob(make, on_ram):
    first, second, data = make(), make(), blob(5000)
    one, two = first.begin(digest(data), 5000), second.begin(digest(data), 5000)
    one.write(0, data[:3000])
    two.write(0, data)
    mine = two.commit()
    one.write(3000, data[3000:])
    assert read(one.commit()) == read(mine) == data
    assert len(on_ram()) == 1 and first.used() == (5000, 0)


def test_what_a_dead_writer_left_is_cleaned_away(make, on_ram):
    store = make()
    writer = store.begin(digest(blob(100)), 100)
    writer.write(0, blob(100)[:60])
    os.close(writer._fd)  # as its death does
    writer._fd = -1
    assert len(on_ram()) == 1
    other = make()
    assert on_ram() == [] and other.used() == (0, 0)


def test_a_living_writer_is_left_alone(make):
    store, data = make(), blob(100)
    writer = store.begin(digest(data), 100)
    writer.write(0, data)
    assert make().used() == (100, 0)
    assert read(writer.commit()) == data


# --- damage ------------------------------------------------------------------------------------


def test_a_damaged_blob_is_found_at_first_use_and_deleted(make, on_ram):
    keep(make(), blob(5000))
    (path,) = on_ram()
    with open(path, "r+b") as handle:
        handle.seek(4999)
        handle.write(b"!")
    store = make()
    assert store.has(digest(blob(5000)))
    assert store.open(digest(blob(5000))) is None
    assert on_ram() == [] and store.used() == (0, 0)


def test_damage_after_the_check_is_found_when_the_file_was_written_to(make, on_ram):
    store = make()
    keep(store, blob(5000))
    (path,) = on_ram()
    with open(path, "r+b") as handle:
        handle.truncate(10)
    assert store.open(digest(blob(5000))) is None


def test_a_blob_is_read_once_in_a_process(make, monkeypatch):
    keep(make(), blob(5000))
    store = make()
    assert not store.is_checked(digest(blob(5000)))
    os.close(store.open(digest(blob(5000))))
    assert store.is_checked(digest(blob(5000)))
    monkeypatch.setattr("worker_payload.store.pieces", None)
    os.close(store.open(digest(blob(5000))))


def test_a_file_that_somebody_put_there_is_not_believed(make, on_ram):
    store, data = make(), blob(100)
    keep(store, data)
    folder = os.path.dirname(on_ram()[0])
    for seed, place in ((1, os.mkdir), (2, lambda p: os.symlink("/etc/passwd", p)), (3, os.mkfifo)):
        place(os.path.join(folder, digest(blob(100, seed))))
        assert store.open(digest(blob(100, seed))) is None


# --- holding -----------------------------------------------------------------------------------


def test_unlinking_hurts_nobody_who_holds_the_blob(make, on_ram):
    store = make()
    fd = put(store, blob(5000))
    os.unlink(on_ram()[0])
    assert not store.has(digest(blob(5000)))
    assert read(fd) == blob(5000)


def test_a_directory_that_was_cleaned_away_is_made_again(make, on_ram):
    store = make()
    fd = put(store, blob(5000))
    (path,) = on_ram()
    os.unlink(path)
    os.rmdir(os.path.dirname(path))
    assert not store.has(digest(blob(5000)))
    keep(store, blob(5000))
    assert store.has(digest(blob(5000)))
    assert read(fd) == blob(5000)


def test_drop_forgets(make, on_ram):
    store = make()
    fd = put(store, blob(5000))
    store.drop(digest(blob(5000)))
    store.drop(digest(blob(5000)))
    assert not store.has(digest(blob(5000))) and on_ram() == [] and store.used() == (0, 0)
    assert read(fd) == blob(5000)


# --- room --------------------------------------------------------------------------------------


def test_ram_first_then_disk(make, on_ram, on_disk):
    store = make(ram=10 * KIB, disk=20 * KIB)
    keep(store, blob(8 * KIB, 1))
    keep(store, blob(8 * KIB, 2))
    assert len(on_ram()) == 1 and len(on_disk()) == 1
    assert store.used() == (8 * KIB, 8 * KIB)
    assert store.room() == 20 * KIB  # a blob is in one place


def test_limits_come_from_the_environment(make, monkeypatch):
    monkeypatch.setenv("JAM_STORE_RAM", "100")
    monkeypatch.setenv("JAM_STORE_DISK", "200")
    store = make(ram=None, disk=None)
    assert store.room() == 200
    with pytest.raises(StoreFull):
        put(store, blob(300))
    monkeypatch.setenv("JAM_STORE_DISK", "2 GB")
    assert make(ram=None, disk=None).notes == ["JAM_STORE_DISK is not a number of bytes: 2 GB"]


def test_without_ram_all_is_on_disk(make, on_ram, on_disk):
    store = make(shm=False)
    keep(store, blob(100))
    assert on_ram() == [] and len(on_disk()) == 1
    assert read(store.open(digest(blob(100)))) == blob(100)


def test_the_least_recently_used_goes(make):
    store = make(ram=0, disk=10 * KIB)
    for seed in (1, 2, 3):
        keep(store, blob(3 * KIB, seed))
        time.sleep(0.002)
    os.close(store.open(digest(blob(3 * KIB, 1))))
    keep(store, blob(3 * KIB, 4))
    assert [store.has(digest(blob(3 * KIB, seed))) for seed in (1, 2, 3, 4)] == [
        True, False, True, True,
    ]  # fmt: skip


def test_what_somebody_holds_does_not_go(make):
    store, other = make(ram=0, disk=10 * KIB), make(ram=0, disk=10 * KIB)
    fd = put(other, blob(4 * KIB, 1))
    copy = os.dup(fd)  # as a worker has it
    os.close(fd)
    keep(store, blob(4 * KIB, 2))
    keep(store, blob(4 * KIB, 3))
    assert store.has(digest(blob(4 * KIB, 1))) and not store.has(digest(blob(4 * KIB, 2)))
    os.close(copy)
    keep(store, blob(4 * KIB, 4))
    assert not store.has(digest(blob(4 * KIB, 1)))


def test_when_all_is_held_the_store_is_full(make):
    store = make(ram=5 * KIB, disk=5 * KIB)
    held = [put(store, blob(4 * KIB, seed)) for seed in (1, 2)]
    with pytest.raises(StoreFull, match=r"4096 bytes does not fit.*4096 are"):
        store.begin(digest(blob(4 * KIB, 3)), 4 * KIB)
    for fd in held:
        os.close(fd)
    keep(store, blob(4 * KIB, 3))


def test_a_blob_larger_than_either_tier_throws_nothing_away(make):
    store = make(ram=5 * KIB, disk=5 * KIB)
    keep(store, blob(4 * KIB))
    for size in (6 * KIB, 1 << 62):
        with pytest.raises(StoreFull):
            store.begin(digest(blob(10)), size)
    assert store.has(digest(blob(4 * KIB)))


def test_what_is_begun_is_counted_at_once(make):
    store, other = make(ram=5 * KIB, disk=0), make(ram=5 * KIB, disk=0)
    writer = store.begin(digest(blob(4 * KIB, 1)), 4 * KIB)
    with pytest.raises(StoreFull):
        other.begin(digest(blob(4 * KIB, 2)), 4 * KIB)
    writer.abort()
    keep(other, blob(4 * KIB, 2))


def test_files_that_vanished_make_room(make, on_ram):
    store = make(ram=5 * KIB, disk=0)
    keep(store, blob(4 * KIB, 1))
    os.unlink(on_ram()[0])
    keep(store, blob(4 * KIB, 2))
    assert store.used() == (4 * KIB, 0)


@pytest.fixture
def full_after(monkeypatch, tmp_path):
    """Makes the file systems of the paths that contain `part` full from so many bytes on."""

    def set_full(part, size):
        pwrite = os.pwrite

        def limited(fd, data, offset):
            if part in os.readlink(f"/proc/self/fd/{fd}"):
                if offset >= size:
                    raise OSError(errno.ENOSPC, "No space left on device")
                return pwrite(fd, data[: size - offset], offset)
            return pwrite(fd, data, offset)

        monkeypatch.setattr("os.pwrite", limited)

    return set_full


def test_ram_that_is_full_before_its_limit_falls_to_disk(make, full_after, on_ram, on_disk):
    store, data = make(), blob(10000)
    full_after("/shm/", 4321)
    assert read(put(store, data)) == data
    assert on_ram() == [] and len(on_disk()) == 1
    assert store.used() == (0, 10000)


def test_a_disk_that_is_full_too_is_an_error(make, full_after, on_ram, on_disk):
    store, data = make(), blob(10000)
    full_after(".part", 4321)
    with pytest.raises(StoreFull, match="No space left"):
        put(store, data)
    assert on_ram() == on_disk() == [] and store.used() == (0, 0)


def test_a_disk_below_its_limit_is_an_error(make, full_after, on_ram, on_disk):
    store, data = make(disk=9000), blob(10000)
    full_after("/shm/", 4321)
    with pytest.raises(StoreFull):
        put(store, data)
    assert on_ram() == on_disk() == [] and store.used() == (0, 0)


def test_a_disk_that_cannot_be_looked_at_is_an_error(
    make, full_after, on_ram, on_disk, monkeypatch
):
    store, data = make(), blob(10000)
    full_after("/shm/", 4321)
    writer = store.begin(digest(data), len(data))

    def broken(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("worker_payload.budget.Budget.reserve", broken)
    with pytest.raises(StoreFull, match="Input/output error"):
        writer.write(0, data)
    writer.abort()
    assert on_ram() == on_disk() == [] and store.used() == (0, 0)


def test_a_directory_that_cannot_be_ours_is_named(make, tmp_path):
    (tmp_path / "cache").mkdir()
    os.symlink("/tmp", str(tmp_path / "cache" / "blobs"))
    store = make(ram=0)
    assert len(store.notes) == 1 and str(tmp_path / "cache" / "blobs") in store.notes[0]
    with pytest.raises(StoreFull):
        store.begin(digest(blob(10)), 10)


def test_somebody_elses_directory_is_not_used(make, tmp_path, monkeypatch):
    keep(make(), blob(10))
    uid = os.getuid() + 1
    monkeypatch.setattr("os.getuid", lambda: uid)
    store = make()
    assert not store.has(digest(blob(10)))
    assert f"belongs to user {uid - 1}" in store.notes[0]


def test_a_directory_that_others_can_read_is_closed_to_them(make, tmp_path):
    (tmp_path / "cache" / "blobs").mkdir(parents=True, mode=0o755)
    make()
    assert stat.S_IMODE((tmp_path / "cache" / "blobs").stat().st_mode) == 0o700


# --- the end -----------------------------------------------------------------------------------


def test_the_last_agent_takes_blobs_from_ram_to_disk(make, on_ram, on_disk, tmp_path):
    first, second = make(), make()
    keep(first, blob(3000))
    first.close()
    assert len(on_ram()) == 1 and on_disk() == []
    second.close()
    assert on_ram() == [] and len(on_disk()) == 1
    assert os.listdir(str(tmp_path / "shm")) == []
    assert read(make().open(digest(blob(3000)))) == blob(3000)


def test_at_the_end_the_most_recently_used_find_room(make, on_ram):
    store = make(ram=20 * KIB, disk=7 * KIB)
    for seed in (1, 2, 3):
        keep(store, blob(3 * KIB, seed))
        time.sleep(0.002)
    os.close(store.open(digest(blob(3 * KIB, 1))))
    store.close(last_agent=True)
    again = make(ram=20 * KIB, disk=7 * KIB)
    assert on_ram() == []
    assert [again.has(digest(blob(3 * KIB, seed))) for seed in (1, 2, 3)] == [True, False, True]


def test_who_opens_while_the_last_one_leaves_waits_for_nothing(make, on_ram, on_disk, monkeypatch):
    leaving = make()
    keep(leaving, blob(3000))
    empty, others = leaving._empty_ram, []

    def found_to_be_the_last():
        opening = threading.Thread(target=lambda: others.append(make()), daemon=True)
        opening.start()
        opening.join(10)
        assert others, "it waits for who leaves"
        empty()

    monkeypatch.setattr(leaving, "_empty_ram", found_to_be_the_last)
    leaving.close()
    assert on_ram() == [] and len(on_disk()) == 1
    assert read(others[0].open(digest(blob(3000)))) == blob(3000)
    keep(others[0], blob(2000))
    assert len(on_ram()) == 1


def test_blobs_on_disk_unused_for_a_week_go(make, on_disk):
    store = make(ram=0)
    keep(store, blob(100, 1))
    keep(store, blob(100, 2))
    old = time.time() - 8 * 86400
    path = next(name for name in on_disk() if name.endswith(digest(blob(100, 1))))
    os.utime(path, (old, old))
    store.close()
    again = make(ram=0)
    assert not again.has(digest(blob(100, 1))) and again.has(digest(blob(100, 2)))
    assert again.used() == (0, 100)


def test_closing_twice_is_closing_once(make):
    store = make()
    store.close()
    store.close()


# --- limits of the machine -----------------------------------------------------------------------


def machine(tmp_path, cgroup, mounts, **files_):
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(cgroup)
    (tmp_path / "proc/self/mountinfo").write_text(mounts)
    (tmp_path / "proc/meminfo").write_text("MemTotal: 1000000 kB\nMemAvailable: 600000 kB\n")
    for name, text in files_.items():
        path = tmp_path / "sys/fs/cgroup" / name.replace("__", "/").replace("_DOT_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return str(tmp_path)


V2 = "30 20 0:27 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"


def test_limits_of_a_machine_without_groups(tmp_path):
    root = machine(tmp_path, "", "")
    assert limits.memory_limit(root) == 1000000 * 1024
    assert limits.memory_free(root) == 600000 * 1024
    assert limits.cpus(root) >= 1


def test_limits_of_version_2_are_the_strictest_above_us(tmp_path):
    root = machine(
        tmp_path, "0::/slurm/job7/step\n", V2,
        slurm__memory_DOT_max="400000\n", slurm__memory_DOT_current="100000\n",
        slurm__job7__memory_DOT_max="900000", slurm__job7__memory_DOT_current="899000",
        slurm__job7__memory_DOT_stat="anon 1\ninactive_file 600000\n",
        slurm__job7__step__memory_DOT_max="max\n",
        slurm__cpu_DOT_max="150000 100000\n", slurm__job7__cpu_DOT_max="max 100000\n",
    )  # fmt: skip
    assert limits.memory_limit(root) == 400000
    assert limits.memory_free(root) == 300000
    assert limits.cpus(root) <= 2


def test_limits_of_version_1_in_a_container(tmp_path):
    root = machine(
        tmp_path, "4:cpu,cpuacct:/docker/abc\n7:memory:/docker/abc/inner\n",
        "31 20 0:28 /docker/abc /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
        "32 20 0:29 /docker/abc /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n",
        memory__memory_DOT_limit_in_bytes="500000\n", memory__memory_DOT_usage_in_bytes="1000\n",
        memory__inner__memory_DOT_limit_in_bytes="9223372036854771712\n",
        cpu__cpu_DOT_cfs_quota_us="50000\n", cpu__cpu_DOT_cfs_period_us="100000\n",
    )  # fmt: skip
    assert limits.memory_limit(root) == 500000
    assert limits.memory_free(root) == 499000
    assert limits.cpus(root) == 1


def test_nonsense_is_no_limit(tmp_path):
    root = machine(
        tmp_path, "rubbish\n0::/../..\n", "x\n" + V2,
        memory_DOT_max="many\n", cpu_DOT_max="max\n",
    )  # fmt: skip
    assert limits.memory_limit(root) == 1000000 * 1024
