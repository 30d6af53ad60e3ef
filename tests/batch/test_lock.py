"""Who may write to an output: one run at a time, and whoever was asleep notices before it sends anything more."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import pytest

from skllm_ray.batch.output import fence, lock
from skllm_ray.batch.output.fence import LOCK_FILE, Fence
from skllm_ray.batch.output.holder import Holder, is_on_local_disk
from skllm_ray.batch.output.lock import OutputLock
from skllm_ray.batch.storage import Folder, StorageOptions, open_folder
from skllm_ray.errors import InputError, OutputInUseError

PROCESSES = multiprocessing.get_context("forkserver")
"""Processes of their own, which do not import everything anew."""
PROCESSES.set_forkserver_preload([__name__])


def folder_of(path: Path) -> Folder:
    return open_folder(str(path), StorageOptions(), {})


def as_object_store(path: Path) -> Folder:
    """Return a folder without exclusive creation or locks."""
    (path / "o").mkdir(parents=True, exist_ok=True)
    return Folder(pafs.SubTreeFileSystem(str(path), pafs.LocalFileSystem()), "o")


@pytest.fixture
def _shared(monkeypatch):
    """Take this machine's disks for shared ones."""
    monkeypatch.setattr(fence, "HEARTBEAT_S", 0.2)
    monkeypatch.setattr(lock, "is_on_local_disk", lambda path: False)
    monkeypatch.setattr(fence, "is_on_local_disk", lambda path: False)


def hold(path: str, held: Any) -> None:
    with OutputLock(open_folder(path, StorageOptions(), {})):
        held.set()
        time.sleep(60)


def holder(path: Path) -> Any:
    held = PROCESSES.Event()
    child = PROCESSES.Process(target=hold, args=(str(path), held))
    child.start()
    assert held.wait(60)
    return child


def stop(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)
    while ") T " not in Path(f"/proc/{pid}/stat").read_text():
        time.sleep(0.01)


@pytest.mark.deep
def test_a_stopped_process_keeps_its_output_and_a_killed_one_does_not(tmp_path):
    child = holder(tmp_path)
    try:
        stop(child.pid)
        with (
            pytest.raises(OutputInUseError, match=rf"process {child.pid} on .*which is stopped \(kill -CONT"),
            OutputLock(folder_of(tmp_path)),
        ):
            pass
    finally:
        child.kill()
        child.join()
    with OutputLock(folder_of(tmp_path)):
        pass


@pytest.mark.usefixtures("_shared")
def test_a_process_of_this_machine_is_alive_on_a_shared_filesystem_too(tmp_path, monkeypatch):
    child = holder(tmp_path)
    try:
        stop(child.pid)
        monkeypatch.setattr(OutputLock, "_lock_here", lambda self: None)  # no locks of the operating system
        with pytest.raises(OutputInUseError, match="which is stopped"), OutputLock(folder_of(tmp_path)):
            pass
    finally:
        child.kill()
        child.join()
    with OutputLock(folder_of(tmp_path)) as held:
        held.check()


def _race(path: str, won: Any, together: Any) -> None:
    together.wait()
    try:
        with OutputLock(open_folder(path, StorageOptions(), {})):
            with won.get_lock():
                won.value += 1
            together.wait()  # until all have tried
    except OutputInUseError:
        together.wait()


def test_one_of_many_processes_takes_a_dead_runs_output_over(tmp_path):
    for n in range(3):
        path = tmp_path / str(n)
        child = holder(path)
        child.kill()
        child.join()
        won, together = PROCESSES.Value("i", 0), PROCESSES.Barrier(4, timeout=60)
        racers = [PROCESSES.Process(target=_race, args=(str(path), won, together)) for _ in range(4)]
        for racer in racers:
            racer.start()
        for racer in racers:
            racer.join()
        assert won.value == 1


@pytest.mark.parametrize("place", [folder_of, as_object_store])
@pytest.mark.usefixtures("_shared")
def test_who_slept_while_another_took_over_notices_before_it_sends(tmp_path, monkeypatch, place):
    folder = place(tmp_path)
    monkeypatch.setattr(OutputLock, "_show_life", lambda self: None)  # it sleeps
    monkeypatch.setattr(OutputLock, "_lock_here", lambda self: None)
    monkeypatch.setattr(Holder, "is_of_this_machine", property(lambda self: False))
    with OutputLock(folder) as first:
        worker = Fence(folder, first.token)
        worker.check()
        with OutputLock(folder) as second:
            second.check()
            for asleep in (first, worker):
                with pytest.raises(OutputInUseError, match=r"took over this output: process \d+"):
                    asleep.check()
        with pytest.raises(OutputInUseError, match="lock is gone"):
            worker.check()


def test_a_local_lock_is_looked_at_before_every_send(tmp_path):
    folder = folder_of(tmp_path)
    with OutputLock(folder) as held:
        worker = Fence(folder, held.token)
        for _ in range(3):
            worker.check()
        folder.write(LOCK_FILE, Holder.of_this_process("another", 0, locked=True).dump())
        for asleep in (held, worker):
            with pytest.raises(OutputInUseError, match="took over"):
                asleep.check()
    assert (tmp_path / LOCK_FILE).exists()  # that of the other run


@pytest.mark.usefixtures("_shared")
def test_two_that_take_over_in_the_same_moment_do_not_both_go_on(tmp_path, monkeypatch):
    folder = as_object_store(tmp_path)
    folder.write(LOCK_FILE, json.dumps({"token": "dead", "beat": 1, "host": "elsewhere", "pid": 7}).encode())
    other = Holder.of_this_process("faster", 0, locked=False)
    whole = Folder.write

    def write(self: Folder, name: str, content: bytes) -> None:
        whole(self, name, content)
        whole(self, name, other.dump())

    monkeypatch.setattr(Folder, "write", write)
    with pytest.raises(OutputInUseError, match="just begun"), OutputLock(folder):
        pass


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '"x"',
        "1e999",
        '{"pid": "many"}',
        '{"pid": -1, "host": 3, "token": null}',
        "\x00\xff",
        "[" * 9999,
    ],
)
def test_a_damaged_lock_is_that_of_a_dead_run(tmp_path, monkeypatch, text):
    monkeypatch.setattr(fence, "HEARTBEAT_S", 0.02)
    (tmp_path / LOCK_FILE).write_text(text, "latin-1")
    with OutputLock(folder_of(tmp_path)) as held:
        held.check()
    assert not (tmp_path / LOCK_FILE).exists()


def test_a_lock_that_is_a_folder_is_named(tmp_path):
    (tmp_path / LOCK_FILE).mkdir()
    with pytest.raises(InputError, match=r"lock\.json"), OutputLock(folder_of(tmp_path)):
        pass


@pytest.mark.usefixtures("_shared")
def test_a_store_that_fails_for_a_moment_ends_nothing(tmp_path, monkeypatch):
    folder = as_object_store(tmp_path)
    with OutputLock(folder) as held:
        worker = Fence(folder, held.token)
        fails = [3]
        whole = Folder.read

        def read(self: Folder, name: str) -> bytes:
            if fails[0]:
                fails[0] -= 1
                raise OSError(5, "slow down")
            return whole(self, name)

        monkeypatch.setattr(Folder, "read", read)
        worker.check()
        fails[0] = 10**9
        worker._looked_at = float("-inf")
        with pytest.raises(OutputInUseError, match="cannot be read"):
            worker.check()


def test_clocks_that_jump_kill_nobody(tmp_path, monkeypatch):
    folder = as_object_store(tmp_path)
    monkeypatch.setattr(fence, "HEARTBEAT_S", 0.2)
    with OutputLock(folder) as held:
        for offset in (1e9, -1e9, 0.0):
            now = time.time()
            monkeypatch.setattr(time, "time", lambda now=now, offset=offset: now + offset)
            held.check()
            with pytest.raises(OutputInUseError), OutputLock(folder):
                pass


def test_the_kind_of_a_filesystem_is_known(tmp_path):
    assert is_on_local_disk(str(tmp_path))
    assert not is_on_local_disk("/proc/self/fdinfo/x")


def test_two_namespaces_of_one_machine_do_not_take_each_other_for_dead(monkeypatch):
    mine = Holder.of_this_process("t", 0, locked=False)
    assert mine.is_alive_here
    elsewhere = Holder.parse(json.dumps({**json.loads(mine.dump()), "boot": mine.boot + "x"}).encode())
    assert not elsewhere.is_dead_here
    assert not elsewhere.is_alive_here
    gone = Holder.parse(json.dumps({**json.loads(mine.dump()), "began": "1"}).encode())
    assert gone.is_dead_here


def test_a_lock_that_could_not_be_deleted_stops_no_later_run_of_its_process(tmp_path, monkeypatch):
    folder = as_object_store(tmp_path)
    monkeypatch.setattr(fence, "HEARTBEAT_S", 0.1)
    with monkeypatch.context() as patch:

        def fail(self: Folder, name: str) -> None:
            raise OSError(5, "slow down")

        patch.setattr(Folder, "delete", fail)
        with OutputLock(folder):
            pass
    assert Holder.parse(folder.read(LOCK_FILE)).is_alive_here
    with OutputLock(folder) as held, pytest.raises(OutputInUseError), OutputLock(folder):
        held.check()
