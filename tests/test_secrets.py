"""A key shows itself in no frame, whoever prints the frames, and in nothing that is written."""

from __future__ import annotations

import io
import pickle
import subprocess
import sys
import textwrap
import traceback
import types
from collections.abc import Callable, Iterator

import pytest

from skllm_ray.classification import ZeroShotGPTClassifier
from skllm_ray.config import Secret, SecretRef, SKLLMConfig, resolve_secret
from skllm_ray.config.checks import checked_key
from skllm_ray.errors import (
    AmbiguousSubmission,
    ConfigurationError,
    InputError,
    MissingKeyError,
    PartialResultError,
    SkllmRayError,
)
from skllm_ray.execution import block
from skllm_ray.llm.gpt.clients.openai.backend import OpenAIBackend
from skllm_ray.llm.gpt.clients.openai.remote_files import open_client
from skllm_ray.plain_text import cell
from skllm_ray.testing import ChatServer, StatusFault

KEY = "sk-planted-0123456789abcdef"
OWN = "own-planted-0123456789abcdef"
OURS = "skllm_ray"


def by_rich(error: BaseException) -> str:
    from rich.console import Console
    from rich.traceback import Traceback

    console = Console(file=io.StringIO(), width=200)
    console.print(
        Traceback.from_exception(
            type(error), error, error.__traceback__, show_locals=True, locals_max_length=99, locals_max_string=9999
        )
    )
    return console.file.getvalue()  # type: ignore[attr-defined]


def by_cgitb(error: BaseException) -> str:
    cgitb = pytest.importorskip("cgitb")  # left the standard library with Python 3.13
    return cgitb.text((type(error), error, error.__traceback__), context=5)


def by_standard_library(error: BaseException) -> str:
    return "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())


def by_sentry(error: BaseException) -> str:
    """As error trackers do: all frames of all exceptions that hang together, locals as far as they can be walked."""
    said, todo, seen = [], [error], set()
    while todo:
        one = todo.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        todo += [one.__cause__, one.__context__]
        said += [shown(frame.f_locals) for frame, _ in traceback.walk_tb(one.__traceback__)]
    return "\n".join(said)


def shown(value: object, depth: int = 6) -> str:
    if depth and isinstance(value, dict):
        return " ".join(f"{shown(k, depth - 1)}: {shown(v, depth - 1)}" for k, v in list(value.items()))
    if depth and isinstance(value, (list, tuple, set, frozenset)):
        return " ".join(shown(one, depth - 1) for one in list(value))
    if isinstance(value, (types.ModuleType, type)):
        return ""
    return f"{value!r} {value!s}" if type(value).__module__.startswith((OURS, "builtins")) else repr(value)


@pytest.fixture(params=["one block", "several blocks"])
def failed(request, local_mode: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[SkllmRayError]:
    """A call that a server refuses, by a key of the settings and one of the estimator's own."""
    monkeypatch.setattr(block, "BLOCK_ROWS", 4)
    SKLLMConfig.set_openai_key(KEY)
    with ChatServer(lambda body: StatusFault(401, f"bad key {OWN}")) as server:
        SKLLMConfig.set_gpt_url(server.url)
        clf = ZeroShotGPTClassifier(model="custom_url::m", key=OWN).fit(None, ["good", "bad"])
        try:
            clf.predict(["a text"] * (1 if request.param == "one block" else 10))
        except SkllmRayError as error:
            yield error


@pytest.mark.parametrize("show", [by_rich, by_cgitb, by_standard_library, by_sentry])
def test_a_traceback_with_locals_shows_no_key(failed: SkllmRayError, show: Callable[[BaseException], str]) -> None:
    told = show(failed)
    assert "secrets" in told or show is by_sentry  # the locals are there
    for part in ("planted", KEY[-8:]):
        assert part not in told


def test_no_frame_of_ours_holds_a_key_while_a_server_is_asked(local_mode: None) -> None:
    SKLLMConfig.set_openai_key(KEY)
    said: list[str] = []
    held: list[tuple[str, str, str]] = []

    def look(body: dict[str, object]) -> str:
        for frame in sys._current_frames().values():
            one: types.FrameType | None = frame
            while one is not None:
                name = str(one.f_globals.get("__name__", ""))
                if name.startswith(OURS + ".") and not name.startswith("skllm_ray.testing"):  # the server got the key
                    said.append(shown(one.f_locals))
                    found = (name, one.f_code.co_name)
                    held.extend((*found, key) for key, value in list(one.f_locals.items()) if "planted" in shown(value))
                one = one.f_back
        return '{"label": "good"}'

    with ChatServer(look) as server:
        SKLLMConfig.set_gpt_url(server.url)
        ZeroShotGPTClassifier(model="custom_url::m", key=OWN).fit(None, ["good", "bad"]).predict(["a text"])
    assert "a text" in " ".join(said)
    assert held == []


@pytest.mark.parametrize("service", ["openai", "azure"])
def test_no_frame_of_ours_holds_a_key_while_a_client_for_files_is_opened(monkeypatch, service):
    seen: list[str] = []

    def look(**given: object) -> None:
        assert given["api_key"] == KEY
        assert given["default_headers"] == {"x-key": OWN}
        frame = sys._getframe(1)
        assert frame.f_code.co_name == "open_client"
        seen.append(shown(frame.f_locals))

    monkeypatch.setattr("openai.OpenAI", look)
    monkeypatch.setattr("openai.AzureOpenAI", look)
    spec = types.SimpleNamespace(service=service, base_url="https://host", org=None, api_version="v")
    open_client(spec, Secret(KEY), {"x-key": Secret(OWN)})
    (locals_,) = seen
    assert "planted" not in locals_ and "https://host" in locals_


@pytest.mark.filterwarnings("ignore:.* rows failed and")
def test_no_frame_holds_a_key_while_an_answer_is_classified(local_mode: None, monkeypatch) -> None:
    """Whoever fails in our own code on the way back, as an odd server makes it do."""
    SKLLMConfig.set_openai_key(KEY)
    errors: list[BaseException] = []

    def broken(self: OpenAIBackend, error: Exception, *rest: object) -> None:
        errors.append(error)
        raise ZeroDivisionError

    monkeypatch.setattr(OpenAIBackend, "_classify", broken)
    with ChatServer(lambda body: StatusFault(401)) as server:
        SKLLMConfig.set_gpt_url(server.url)
        clf = ZeroShotGPTClassifier(model="custom_url::m", key=OWN, on_error="coerce").fit(None, ["good", "bad"])
        clf.predict(["a text"])
    frames = [frame for error in errors for frame, _ in traceback.walk_tb(error.__traceback__)]
    ours = [frame for frame in frames if frame.f_globals["__name__"].startswith(OURS)]
    assert ours
    assert "planted" not in " ".join(shown(frame.f_locals) for frame in ours)


def test_a_resolver_that_fails_leaves_nothing_behind(tmp_path, monkeypatch) -> None:
    (tmp_path / "my_secrets.py").write_text("def get(name):\n    key = 'sk-planted-01234567'\n    return key + 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingKeyError, match="failed for openai_key: TypeError") as caught:
        resolve_secret(SecretRef("openai_key", (), resolver="my_secrets:get"))
    assert caught.value.__context__ is None


def test_credentials_between_processes_travel_whole_and_show_nothing() -> None:
    pytest.importorskip("ray")
    import pickle

    from skllm_ray.execution.secrets import Sealed

    sealed = Sealed([Secret(KEY)])
    assert "planted" not in repr(sealed) + str(sealed)
    assert pickle.loads(pickle.dumps(sealed)).open()[Secret(KEY).fingerprint].reveal() == KEY


@pytest.mark.deep
@pytest.mark.parametrize("how", ["pytest", "ipython"])
def test_whole_programs_that_print_locals(how, tmp_path) -> None:
    """`pytest --showlocals`, and IPython's verbose tracebacks."""
    body = textwrap.dedent(
        """
        import skllm_ray
        from skllm_ray.classification import ZeroShotGPTClassifier
        from skllm_ray.config import SKLLMConfig

        def test_it():
            skllm_ray.init(local_mode=True)
            SKLLMConfig.set_openai_key("sk-" + "planted-01234567"[:])
            SKLLMConfig.set_gpt_url("http://127.0.0.1:9/v1")
            SKLLMConfig.set_timeouts(connect_s=0.2, request_s=0.2, row_s=0.5)
            clf = ZeroShotGPTClassifier(model="custom_url::m").fit(None, ["good", "bad"])
            clf.predict(["a text"])
        """
    )
    path = tmp_path / "test_it.py"
    path.write_text(body)
    command = [sys.executable, "-m", "pytest", "-q", "--showlocals", "--tb=long", "-p", "no:cacheprovider", str(path)]
    if how == "ipython":
        pytest.importorskip("IPython")
        path.write_text(body + "\ntest_it()\n")
        command = [sys.executable, "-m", "IPython", "--xmode=Verbose", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    said = (done.stdout + done.stderr).replace('"sk-" + "planted-01234567"', "")
    assert "secrets" in said
    assert "planted" not in said


@pytest.mark.parametrize("shown", [by_rich, by_standard_library, by_sentry])
@pytest.mark.parametrize("way", ["set_gpt_url", "set_azure_api_base", "SKLLM_CONFIG_GPT_URL", "OPENAI_BASE_URL"])
def test_an_address_with_a_password_is_refused_and_shows_in_no_frame_of_ours(way, shown, monkeypatch, tmp_path):
    (tmp_path / "address").write_text(f"http://me:{KEY}@localhost:1/v1")  # read, so that no frame here holds it
    if way.startswith("set_"):
        refused = lambda: getattr(SKLLMConfig, way)((tmp_path / "address").read_text())  # noqa: E731
    else:
        monkeypatch.setenv(way, (tmp_path / "address").read_text())
        refused = SKLLMConfig.get_openai_base_url if way == "OPENAI_BASE_URL" else SKLLMConfig.get_gpt_url
    with pytest.raises(ConfigurationError, match="address alone") as raised:
        refused()
    assert KEY not in shown(raised.value)


def test_a_key_with_half_a_surrogate_pair_is_refused_as_any_key_that_no_request_can_carry():
    with pytest.raises(ConfigurationError, match="not ASCII"):
        SKLLMConfig.set_openai_key("sk-\ud800")


# --- what cannot be a credential, or is in the wrong place ------------------------------------------------------------


WRONG = [[KEY], (KEY,), {KEY}, {"key": KEY}, KEY.encode(), f"{KEY}\n{KEY}", f"{KEY}\ud800"]
TAKERS = {
    "set_openai_key": SKLLMConfig.set_openai_key,
    "set_openai_org": SKLLMConfig.set_openai_org,
    "set_gpt_url": SKLLMConfig.set_gpt_url,
    "set_azure_api_base": SKLLMConfig.set_azure_api_base,
    "set_secret_resolver": SKLLMConfig.set_secret_resolver,
    "set_extra_headers": lambda value: SKLLMConfig.set_extra_headers({"x-key": value}),
    "names of headers": lambda value: SKLLMConfig.set_extra_headers({_hashable(value): "x"}),
    "key": lambda value: ZeroShotGPTClassifier(key=value).fit(None, ["a", "b"]),
    "set_params": lambda value: ZeroShotGPTClassifier().set_params(key=value).fit(None, ["a", "b"]),
    "org": lambda value: ZeroShotGPTClassifier(org=value).fit(None, ["a", "b"]),
    "request_options": lambda value: ZeroShotGPTClassifier(request_options={"api_key": value}).fit(None, ["a", "b"]),
    "resolve_secret": lambda value: checked_key("key", value),
}


def _hashable(value: object) -> object:
    return str(value) if isinstance(value, (list, set, dict)) else value


@pytest.mark.parametrize("value", WRONG, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("taker", TAKERS)
def test_no_message_repeats_what_was_given_as_a_credential(taker, value) -> None:
    with pytest.raises((ConfigurationError, TypeError)) as caught:
        TAKERS[taker](value)
    assert "planted" not in str(caught.value)
    assert "planted" not in repr(caught.value)


@pytest.mark.parametrize(
    "make",
    [
        lambda: InputError(f"input='http://u:{KEY}@host/in.csv' does not exist.", f"Or s3://a:{KEY}@b/c."),
        lambda: ConfigurationError(f"tuning_store='redis://u:{KEY}@host/1' cannot be opened."),
        lambda: PartialResultError(f"http://:{KEY}@host/v1 failed"),
        lambda: AmbiguousSubmission(f"http://:{KEY}@host/v1 failed", "", "k"),
    ],
)
def test_no_error_shows_the_password_of_an_address(make) -> None:
    error = make()
    for shown in (str(error), repr(error), str(error.args), str(vars(error)), str(pickle.loads(pickle.dumps(error)))):
        assert "planted" not in shown
        assert ":***@" in shown or "'k'" in shown
    assert "planted" not in str(cell(f"output: s3://AKIA:{KEY}@bucket/out"))
