"""Addresses where no Ray answers are told in seconds: Ray itself would try for minutes, and then end the process."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from click.testing import CliRunner

import skllm_ray
from skllm_ray.cli import main
from skllm_ray.errors import ClusterError, ConfigurationError
from skllm_ray.execution import rate_limiter, ray_state, session
from skllm_ray.execution.pool_actor import SHARED
from skllm_ray.testing import ChatServer


@pytest.fixture(autouse=True)
def _no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (ray_state, session):  # the tests of another folder may have started a Ray in this process
        monkeypatch.setattr(module, "_initialised", lambda: False)
    monkeypatch.setattr(session, "_CONNECT_TIMEOUT_S", 0.3)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.fixture
def silent() -> Iterator[str]:
    """Something that listens and never says a word, like a process that was stopped."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def other() -> Iterator[str]:
    """Another server at the port of a cluster that is gone."""
    with ChatServer() as server:
        yield server.root.removeprefix("http://")


@pytest.mark.parametrize(
    ("where", "why"),
    [
        ("127.0.0.1:9", "refused"),
        ("silent", r"no answer within 0\.3 s"),
        ("other", "what listens there is no Ray"),
        ("no-such-host.invalid:6379", ""),
        ("127.0.0.1:99999", ""),
    ],
)
@pytest.mark.parametrize("how", ["init", "RAY_ADDRESS", "auto", "limits", "limits --address", "tune list", "demo"])
def test_an_address_where_no_ray_answers(monkeypatch, request, where, why, how):
    address = request.getfixturevalue(where) if where in {"silent", "other"} else where
    monkeypatch.setattr(session, "_last_cluster", lambda: address)
    monkeypatch.setattr("ray._private.services.find_gcs_addresses", set)
    monkeypatch.setattr("ray.init", lambda **options: pytest.fail("Ray was asked to join"))
    expected = rf"Ray could not be joined at {address}.*: .*{why}"
    if how in {"init", "auto", "RAY_ADDRESS"}:
        if how == "RAY_ADDRESS":
            monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(ClusterError, match=expected):
            session.init({"init": address, "auto": "auto"}.get(how))
        return
    command = {"limits": ["limits"], "tune list": ["tune", "list", "--address", address]}.get(how)
    command = command or [how.split()[0], "--address", address]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 1
    assert "could not be joined at" in done.output


def test_the_address_of_a_cluster_that_is_gone_is_passed_over_where_none_was_given(monkeypatch, silent):
    for address in ("127.0.0.1:9", silent):
        monkeypatch.setattr(session, "_last_cluster", lambda address=address: address)
        assert session._checked(None) == "local"
    monkeypatch.setattr(session, "_last_cluster", lambda: "")
    assert session._checked(None) == ""


def test_auto_takes_the_one_cluster_that_runs(monkeypatch):
    monkeypatch.setattr(session, "_fault_at", lambda address: "" if address == "10.0.0.1:6379" else "gone")
    monkeypatch.setattr(session, "_last_cluster", lambda: "127.0.0.1:9")
    monkeypatch.setattr("ray._private.services.find_gcs_addresses", lambda: {"10.0.0.1:6379"})
    assert session._checked("auto") == "10.0.0.1:6379"
    monkeypatch.setattr("ray._private.services.find_gcs_addresses", set)
    monkeypatch.setattr(session, "_last_cluster", lambda: "")
    with pytest.raises(ClusterError, match="No Ray cluster runs on this machine"):
        session._checked("auto")
    with pytest.raises(ClusterError, match="No Ray cluster runs on this machine"):
        skllm_ray.init("auto")


@pytest.mark.parametrize("address", ["auto", None])
def test_auto_is_what_ray_address_names_as_in_ray_itself(monkeypatch, silent, address):
    monkeypatch.setattr(session, "_last_cluster", lambda: "10.0.0.1:6379")
    monkeypatch.setattr("ray._private.services.find_gcs_addresses", lambda: {"10.0.0.1:6379"})
    monkeypatch.setattr("ray.init", lambda **options: pytest.fail("Ray was asked to join"))
    for dead in ("127.0.0.1:9", silent):
        monkeypatch.setenv("RAY_ADDRESS", dead)
        with pytest.raises(ClusterError, match=f"could not be joined at {dead}, which RAY_ADDRESS names: "):
            skllm_ray.init(address)
    monkeypatch.setattr(session, "_fault_at", lambda address: "")
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.2:6379")
    assert session._checked(address) == "10.0.0.2:6379"
    assert session._checked("10.0.0.3:6379") == "10.0.0.3:6379"
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert session._checked(address) == "10.0.0.1:6379"
    monkeypatch.setenv("RAY_ADDRESS", "ray://10.0.0.2:10001")
    with pytest.raises(ConfigurationError, match="ray:// client, which skllm_ray does not support"):
        skllm_ray.init(address)


def test_an_actor_that_outlives_jobs_is_named_by_what_it_is_told():
    @dataclass
    class Told:
        number: int

    first = ray_state.shared_name("limiter", Told)
    assert first == ray_state.shared_name("limiter", Told)
    assert first.startswith("limiter-")
    Told.__dataclass_fields__["number"].type = "str"
    assert ray_state.shared_name("limiter", Told) != first
    assert "rate-limiter" not in {rate_limiter._NAME, first}
    assert SHARED != "pool-shared"


def test_a_ray_whose_processes_do_not_start_in_time_is_told(monkeypatch):
    import ray

    def too_slow(**options: object) -> None:
        raise Exception("The current node timed out during startup.")  # as Ray does

    monkeypatch.setattr(ray, "init", too_slow)
    monkeypatch.setattr(session, "_last_cluster", lambda: "")
    with pytest.raises(ClusterError, match="timed out during startup") as told:
        skllm_ray.init()
    assert "On a busy machine, call again." in str(told.value)
