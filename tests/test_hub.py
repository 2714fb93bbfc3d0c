"""Pushing to a model hub: only what is public, only with a token, and nothing lost where the hub refuses."""

import shlex
import socket

import datasets
import pytest
from huggingface_hub import HfApi, RepoUrl
from huggingface_hub.utils import filter_repo_objects
from typer.testing import CliRunner

from distill.cli import app
from distill.errors import UserError
from distill.storage import hub

PUBLIC = {"README.md", "config.json", "model.safetensors", "tokenizer.json", "metrics.json", "learning_curve.png"}
PRIVATE = {"recipe.yaml", "manifest.json", "predictions.parquet", "metrics.jsonl", "notes-of-mine.txt"}


@pytest.fixture
def folder(tmp_path):
    for name in PUBLIC | PRIVATE:
        (tmp_path / name).write_text("x")
    for inner in ("checkpoints/checkpoint-2", "teacher_logits", "export/onnx-int8"):
        (tmp_path / inner).mkdir(parents=True)
        (tmp_path / inner / "model.safetensors").write_text("x")
    return tmp_path


@pytest.fixture
def api(monkeypatch):
    """A hub that notes what it is asked for."""
    asked = {}

    def create_repo(self, name, **options):
        asked["created"] = {"name": name, **options}
        return RepoUrl(f"https://huggingface.co/someone/{name}", endpoint="https://huggingface.co")

    def upload_folder(self, **options):
        files = [path.relative_to(options["folder_path"]).as_posix() for path in options["folder_path"].rglob("*.*")]
        sent = filter_repo_objects(files, allow_patterns=options["allow_patterns"])  # as the library's own chooses
        asked["sent"] = {f"{options['repo_id']}/{options['path_in_repo'] or '.'}/{file}" for file in sent}

    monkeypatch.setattr(hub.constants, "is_offline_mode", lambda: False)
    monkeypatch.setattr(hub, "get_token", lambda: "hf_secret")
    monkeypatch.setattr(HfApi, "create_repo", create_repo)
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    return asked


@pytest.mark.parametrize("within", [None, "onnx-int8"])
def test_nothing_private_leaves_and_a_new_repository_is_private(folder, api, within):
    hub.check_can_push("mine")
    assert hub.push(folder, "mine", within=within) == "https://huggingface.co/someone/mine"
    assert api["created"] == {"name": "mine", "private": True, "exist_ok": True}
    assert api["sent"] == {f"someone/mine/{within or '.'}/{name}" for name in PUBLIC}


def test_a_hub_that_refuses_is_one_line_and_says_how_to_send_it_later(folder, api, monkeypatch):
    def refuse(self, **_):
        raise ConnectionError("no route\nmore of it")

    monkeypatch.setattr(HfApi, "upload_folder", refuse)
    with pytest.raises(UserError) as caught:
        hub.push(folder, "mine")
    assert caught.value.problems == ("--push-to-hub mine: no route",)
    later = shlex.split(str(caught.value.hint).split("later: ")[1])
    assert later[:6] == ["hf", "upload", "mine", str(folder), ".", "--private"]
    assert set(later[7::2]) == PUBLIC and set(later[6::2]) == {"--include"}
    assert (folder / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("name", "is_offline", "token", "said"),
    [
        ("a b", False, "hf_x", "wants NAME or OWNER/NAME"),
        ("mine", True, "hf_x", "HF_HUB_OFFLINE is set"),
        ("mine", False, None, "no token is set"),
    ],
)
def test_what_cannot_be_pushed_is_said_before_any_work(tmp_path, api, monkeypatch, name, is_offline, token, said):
    monkeypatch.setattr(hub.constants, "is_offline_mode", lambda: is_offline)
    monkeypatch.setattr(hub, "get_token", lambda: token)
    output = tmp_path / "teacher"
    done = CliRunner().invoke(
        app, ["teacher", "recipes/quickstart.yaml", "--push-to-hub", name, "--output", str(output)]
    )
    assert done.exit_code == 2 and said in done.stderr and "Traceback" not in done.stderr
    assert not output.exists() and not api


@pytest.mark.parametrize("command", ["predict", "check", "teacher", "data", "doctor"])
def test_a_hub_that_cannot_be_reached_is_asked_once(command, recipe_path, tmp_path, monkeypatch):
    """Each library would try for half a minute, and the next one again."""
    asked = []

    def refuse(*arguments, **_):
        asked.append(arguments)
        raise OSError(101, "Network is unreachable")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    hub._asked.cache_clear()
    name = "nobody/nothing"
    arguments = {
        "predict": ["predict", name, "a good film"],
        "check": ["check", recipe_path, "--set", f"teacher.model={name}"],
        "teacher": ["teacher", recipe_path, "--set", f"teacher.model={name}"],
        "data": ["teacher", recipe_path, "--set", f"data.dataset={name}"],
        "doctor": ["doctor", recipe_path, "--set", f"teacher.model={name}", "--set", f"data.dataset={name}"],
    }[command]
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    hub._asked.cache_clear()
    assert len(asked) == (0 if command == "check" else 1), done.stderr  # which looks at this disk alone
    assert done.exit_code == (0 if command == "check" else 2) and "Traceback" not in done.stderr, done.exception
    assert name in done.output
