"""Commands about the machine and the shell."""

from __future__ import annotations

import contextlib
import io
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import tyro

from medduet.cli.parse import parse, quiet_libraries
from medduet.config import recipe_names
from medduet.errors import ConfigError, closest

_SHELLS = ("bash", "fish", "zsh")
_RECIPE_OF = {"train": "honest", "search": "adares", "benchmark": "tasks"}


def doctor(words: list[str]) -> int:
    """Tell what this machine has and what is missing; 1 if something is wrong."""

    def arguments(cache: Path | None = None) -> Path | None:
        """Tell what this machine has, and what is missing, with the command that installs it.

        Args:
            cache: Folder of downloads and unpacked sets; None: the one that would be used.
        """
        return cache

    cache = parse(arguments, words, "medduet doctor")
    with quiet_libraries():
        from medduet.cli.display.known import show_findings
        from medduet.cli.doctor import examine

        findings = examine(cache)
        show_findings(findings)
    return int(any(finding.state == "bad" for finding in findings))


def completion(words: list[str]) -> int:
    """Print what lets a shell complete commands and options."""

    def arguments(shell: Annotated[str, tyro.conf.Positional] = "") -> str:
        """Print what lets a shell complete commands and options: medduet completion bash|fish|zsh.

        bash: medduet completion bash > ~/.local/share/bash-completion/completions/medduet

        fish: medduet completion fish > ~/.config/fish/completions/medduet.fish

        zsh: medduet completion zsh > ~/.zfunc/_medduet (with ~/.zfunc in fpath)

        Args:
            shell: bash, fish or zsh.
        """
        return shell

    shell: Any = parse(arguments, words, "medduet completion")
    if shell not in _SHELLS:
        raise ConfigError(f"expected a shell, given '{shell}': {closest(shell, _SHELLS)}")
    from medduet.cli import COMMANDS

    options = {command: _options(command) for command in COMMANDS}
    sys.stdout.write({"bash": _bash, "fish": _fish, "zsh": _zsh}[shell](options))
    return 0


def _options(command: str) -> list[str]:
    """Return what can follow a command: its options, as its help names them, and recipes."""
    from medduet.cli import main

    recipe = [_RECIPE_OF[command]] if command in _RECIPE_OF else []
    told = io.StringIO()
    with contextlib.redirect_stdout(told), contextlib.suppress(SystemExit):
        main([command, *recipe, "--help"])
    kinds = {"train": "", "search": "search", "benchmark": "grid"}
    names = recipe_names(kinds[command]) if command in kinds else []
    found = re.findall(r"(?<![\w-])--[a-z][\w.-]*\w", told.getvalue())
    return [*names, *sorted(set(found))]


def _bash(options: Mapping[str, list[str]]) -> str:
    cases = "\n".join(f"    {name}) words='{' '.join(each)}' ;;" for name, each in options.items())
    return f"""\
# bash completion of medduet; made by: medduet completion bash
_medduet() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}" words=''
  if [ "$COMP_CWORD" -eq 1 ]; then
    words='{" ".join(options)}'
  else case "${{COMP_WORDS[1]}}" in
{cases}
  esac; fi
  COMPREPLY=($(compgen -W "$words" -- "$word"))
  if [ "$COMP_CWORD" -gt 1 ] && [ "${{word:0:1}}" != - ]; then
    COMPREPLY+=($(compgen -f -- "$word"))
  fi
}}
complete -o filenames -F _medduet medduet
"""


def _zsh(options: Mapping[str, list[str]]) -> str:
    cases = "\n".join(f"    {name}) found=({' '.join(each)}) ;;" for name, each in options.items())
    return f"""\
#compdef medduet
# zsh completion of medduet; made by: medduet completion zsh
_medduet() {{
  local -a found
  if (( CURRENT == 2 )); then
    compadd -- {" ".join(options)}
    return
  fi
  case "${{words[2]}}" in
{cases}
  esac
  compadd -- $found
  _files
}}
_medduet "$@"
"""


def _fish(options: Mapping[str, list[str]]) -> str:
    lines = ["# fish completion of medduet; made by: medduet completion fish"]
    lines += [f"complete -c medduet -n __fish_use_subcommand -a '{' '.join(options)}'"]
    for command, words in options.items():
        seen = f"complete -c medduet -n '__fish_seen_subcommand_from {command}' -a"
        lines.append(f"{seen} '{' '.join(words)}'")
    return "\n".join(lines) + "\n"
