"""`esl-sparse`: the command line. Its libraries come with the extra `[train]` and load only here."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence

_EXTRA = {"click", "rich", "matplotlib", "tensorboard", "scipy"}
_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; what goes wrong through arguments, data or files is one sentence and a non-zero exit."""
    try:
        import click

        from .checkpoint import CheckpointError
        from .data import DataError
        from .experiments.commands import cli
        from .experiments.train import RunError
    except ModuleNotFoundError as error:
        if error.name not in _EXTRA:
            raise
        return _fail(f'{error.name} is not installed: pip install "esl_sparse[train]"')
    with warnings.catch_warnings():
        warnings.showwarning = _warn
        try:
            return cli.main(arguments, prog_name="esl-sparse", standalone_mode=False) or 0
        except click.ClickException as error:
            return _fail(error.format_message(), error.exit_code)
        except (CheckpointError, DataError, RunError, OSError) as error:
            return _fail(str(error))
        except (click.Abort, KeyboardInterrupt):
            return _fail("interrupted", _INTERRUPTED)


def _fail(sentence: str, code: int = 1) -> int:
    print(f"esl-sparse: {sentence}", file=sys.stderr)
    return code


def _warn(message: Warning | str, *_: object, **__: object) -> None:
    if os.environ.get("RANK", "0") != "0":  # torchrun's; every process would say the same
        return
    print(f"esl-sparse: warning: {message}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
