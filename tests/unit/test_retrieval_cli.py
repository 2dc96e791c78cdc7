"""What the command line of the index says of its keys."""

from __future__ import annotations

import inspect

import pytest

from retrieval_index.cli import _COMMANDS, main
from retrieval_index.cli_help import MEANINGS


def test_every_key_is_explained_and_no_other() -> None:
    keys = {key for command in _COMMANDS.values() for key in inspect.signature(command).parameters}
    assert keys == set(MEANINGS)


@pytest.mark.parametrize("command", _COMMANDS)
def test_help_names_each_key_once_with_its_default(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for key, parameter in inspect.signature(_COMMANDS[command]).parameters.items():
        (line,) = (x for x in lines if x.split()[:1] in ([f"{key}=..."], [key.upper()]))
        if isinstance(parameter.default, int | float) and parameter.default is not True:
            assert str(parameter.default).lower() in line
        assert ("(required)" in line) == (parameter.default is parameter.empty)
