"""What all sub-commands of `rnn-ext` share: dispatch, exit codes, and messages of failures."""

import io
import os
import signal
import subprocess
import sys
from types import ModuleType

import pytest
import torch

import rnn_ext
from rnn_ext import cli
from rnn_ext.cli.errors import UserError

RNN_EXT = [sys.executable, "-m", "rnn_ext"]
# One thread: on a busy machine a second one only causes waiting.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture
def command(monkeypatch):
    """Adds a sub-command `fake` that does nothing but call the given function."""

    def add(action):
        def run(args):
            action()
            return 0

        module = ModuleType("fake_command")
        module.add_arguments = lambda parser: None
        module.run = run
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setitem(cli._COMMANDS, "fake", (module.__name__, "do as told"))

    return add


def raising(error):
    def action():
        raise error

    return action


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"rnn-ext {rnn_ext.__version__}\n"


def test_python_dash_m_is_the_command_and_passes_its_exit_code_on():
    result = subprocess.run([*RNN_EXT, "demo", "--epochs", "0"], capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith("rnn-ext: argument --epochs: ")
    assert result.stderr.count("\n") == 1


def test_help_lists_the_commands(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert all(f"\n    {name} " in out for name in ("demo", "train", "generate", "bench", "info"))


def test_help_of_the_demo_shows_every_default(capsys):
    with pytest.raises(SystemExit):
        cli.main(["demo", "--help"])
    out = " ".join(capsys.readouterr().out.split())
    for default in ("Hello, how are you?", "100", "32", "0.01", "0", "tanh", "cpu"):
        assert f"(default: {default})" in out


def test_only_the_command_that_runs_is_imported(monkeypatch, capsys):
    monkeypatch.setitem(cli._COMMANDS, "absent", ("rnn_ext.no_such_module", "fail if imported"))
    assert cli.main(["info"]) == 0
    with pytest.raises(ModuleNotFoundError):
        cli.main(["absent"])


def test_info_prints_every_build_fact_aligned(capsys):
    assert cli.main(["info"]) == 0
    lines = capsys.readouterr().out.splitlines()
    facts = rnn_ext.build_info()
    assert [line.partition(":")[0] for line in lines] == list(facts)
    starts = {len(line) - len(line.partition(":")[2].lstrip()) for line in lines}
    assert starts == {max(map(len, facts)) + 2}
    printed = {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}
    assert printed["isa_compiled"] == ", ".join(facts["isa_compiled"])
    assert printed["openmp"] == ("yes" if facts["openmp"] else "no")
    assert printed["torch_running"] == torch.__version__


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        ([], "missing command: demo, train, generate, bench, info (see rnn-ext --help)"),
        (["--nope"], "unrecognized arguments: --nope"),
        (["demo", "--nope"], "unrecognized arguments: --nope"),
        (["demo", "--hidden", "8"], "unrecognized arguments: --hidden 8"),
        (["info", "more"], "unrecognized arguments: more"),
        (["demo", "--text"], "argument --text: expected one argument"),
    ],
)
def test_bad_command_line_is_a_one_line_error(capsys, argv, sentence):
    assert cli.main(argv) == 2
    assert capsys.readouterr() == ("", f"rnn-ext: {sentence}\n")


def test_unknown_command_lists_those_that_exist(capsys):
    assert cli.main(["nope"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("rnn-ext: argument COMMAND: invalid choice: 'nope' (choose from ")
    assert all(name in err for name in ("demo", "train", "generate", "bench", "info"))
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("action", "sentence"),
    [
        (raising(UserError("no such corpus")), "no such corpus"),
        (
            raising(PermissionError(13, "Permission denied", "log")),
            "log: Permission denied",
        ),
        (raising(MemoryError()), "out of memory; choose smaller sizes"),
        (lambda: torch.empty(2**60), "out of memory; choose smaller sizes"),
    ],
)
def test_user_error_is_one_line(command, capsys, action, sentence):
    command(action)
    assert cli.main(["fake"]) == 2
    assert capsys.readouterr() == ("", f"rnn-ext: {sentence}\n")


@pytest.mark.parametrize(
    "error", [RuntimeError("a bug"), ValueError("a bug"), ModuleNotFoundError("a bug", name="xyz")]
)
def test_internal_error_keeps_its_traceback(command, error):
    command(raising(error))
    with pytest.raises(type(error), match="a bug"):
        cli.main(["fake"])


@pytest.mark.parametrize("package", ["tqdm", "matplotlib", "safetensors"])
def test_missing_package_error_says_how_to_install_it(command, capsys, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)  # makes the import below fail
    command(lambda: __import__(f"{package}.submodule"))
    assert cli.main(["fake"]) == 2
    assert capsys.readouterr() == (
        "",
        f"rnn-ext: this needs {package}; install it with: pip install {package}\n",
    )


def test_demo_needs_no_optional_package(capsys, monkeypatch):
    for package in cli._OPTIONAL_PACKAGES:
        monkeypatch.setitem(sys.modules, package, None)
    assert cli.main(["demo", "--epochs", "1"]) == 0


def test_ctrl_c_ends_the_command_quietly_with_130():
    # The wrapper resets SIGINT, which a shell's background job ignores and passes on so.
    program = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from rnn_ext.cli import main; sys.exit(main(['demo', '--epochs', '1000000000']))"
    )
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=pipe, stderr=pipe, env=ENVIRONMENT
    ) as process:
        assert process.stdout.readline().startswith(b"Epoch [10/1000000000], Loss: ")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == b""


@pytest.mark.parametrize(
    "start",
    ["runpy.run_module('rnn_ext', run_name='__main__')", "import rnn_ext_command as c; c.main()"],
    ids=["python -m rnn_ext", "rnn-ext"],
)
def test_ctrl_c_during_the_import_of_torch_leaves_no_traceback(start, tmp_path):
    (tmp_path / "torch.py").write_text(
        "import time; print('importing', flush=True); time.sleep(60)"
    )
    # As `python -m` starts a module, but with SIGINT's handler even where the parent ignores it.
    program = (
        "import runpy, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        f"sys.argv = ['-m', 'info']; sys.path.insert(0, {str(tmp_path)!r}); {start}"
    )
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=pipe, stderr=pipe, env=ENVIRONMENT
    ) as process:
        assert process.stdout.readline() == b"importing\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT
    assert err == b""


def test_import_of_the_package_keeps_the_handler_of_ctrl_c():
    for argv in (["-m"], ["program"]):
        program = (
            f"import signal, sys; sys.argv = {argv}; before = signal.getsignal(signal.SIGINT); "
            "import rnn_ext; assert signal.getsignal(signal.SIGINT) is before"
        )
        subprocess.run([sys.executable, "-c", program], check=True, env=ENVIRONMENT)


def test_a_closed_pipe_ends_the_command_quietly_with_141():
    pipe = subprocess.PIPE
    with subprocess.Popen([*RNN_EXT, "demo"], stdout=pipe, stderr=pipe, env=ENVIRONMENT) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=60) == 141


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_full_disk_is_a_one_line_error():
    # Buffered, so that the first failing write is the flush at the end.
    environment = {name: v for name, v in ENVIRONMENT.items() if name != "PYTHONUNBUFFERED"}
    with open("/dev/full", "wb") as full:
        result = subprocess.run(
            [*RNN_EXT, "info"],
            stdout=full,
            stderr=subprocess.PIPE,
            env=environment,
        )
    assert result.returncode == 2
    assert result.stderr == b"rnn-ext: No space left on device\n"


def test_closed_stdout_is_not_an_error(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)  # as Python sets it for `rnn-ext info >&-`
    assert cli.main(["info"]) == 0


def test_terminal_without_the_characters_of_the_text_gets_escapes(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    assert cli.main(["demo", "--text", "春眠", "--epochs", "20"]) == 0
    assert raw.getvalue().endswith(b"Generated Text: \\u6625\\u7720\n")
