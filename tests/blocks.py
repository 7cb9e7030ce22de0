"""Code blocks of Markdown files, and the command lines in them: what README and docs promise is tried."""

import re
import shlex
from pathlib import Path

import click

from faceswap.cli import main

ROOT = Path(__file__).parents[1]
START = re.compile(r"(?:^|&& |-m |COMPLETE=\w+ )(faceswap(?: [a-z].*|$|\)))")  # where a faceswap command begins


def blocks(path: Path) -> list[tuple[str, str]]:
    """Each block's language, "" for commands, and its text."""
    return re.findall(r"^```([^\n]*)\n(.*?)^```$", path.read_text(), re.MULTILINE | re.DOTALL)


def commands(path: Path) -> list[list[str]]:
    """The words after `faceswap` of each command line in the blocks without a language."""
    lines = [line for language, text in blocks(path) if not language for line in text.splitlines()]
    found = [START.search(line) for line in lines if not line.startswith("#")]
    words = [shlex.split(match[1], comments=True)[1:] for match in found if match]
    return [line for line in words if line and line[-1] != "..."]


def parse(words: list[str]) -> str:
    """The name of the command; `click.UsageError` if there is none, or an option is missing or unknown."""
    command, name, rest = main.commands[words[0]], words[0], words[1:]
    while isinstance(command, click.Group):
        command, name, rest = command.commands[rest[0]], f"{name} {rest[0]}", rest[1:]
    context = click.Context(command, info_name=command.name, **main.context_settings)  # click keeps what it is told
    command.parse_args(context, list(rest))
    return name


def leaves(group: click.Group = main, above: str = "") -> dict[str, click.Command]:
    """Every command that is no group, by its name in full."""
    found: dict[str, click.Command] = {}
    for name, command in group.commands.items():
        inside = isinstance(command, click.Group)
        found |= leaves(command, f"{above}{name} ") if inside else {f"{above}{name}": command}  # type: ignore[arg-type]
    return found
