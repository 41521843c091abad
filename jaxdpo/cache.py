"""`python -m jaxdpo.cache list|prune|clear|verify`: what is kept to be used again."""

import sys

from jaxdpo.cli.command import Command, run_command

COMMAND = Command(
    name="cache",
    summary="list, prune, clear or verify what is kept to be used again",
    synopsis=("list|prune|clear|verify [field=value …]",),
    about="""
Tokenised pairs, log-probs of references, compiled programs, copies of what lies in object stores,
and converted models are kept in one folder. All of it is made again where it is missing. Whatever
adds to the folder prunes it to its limits once a day, but for what was used within the last hour.
""",
    positionals=("action",),
)


def main(arguments: list[str]) -> None:
    """Tends the cache as the arguments say; `--help` shows every field."""
    with COMMAND.loading(arguments):
        from jaxdpo.cli.settings import load_settings
        from jaxdpo.runs.cache import CacheConfig, tend_cache
    given = COMMAND.read(arguments, CacheConfig)
    tend_cache(load_settings(CacheConfig, given.file, given.overrides))


if __name__ == "__main__":
    sys.exit(run_command(main))
