"""`nncift doctor` and `nncift --install-completion` on the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from nncift.cli.messages import as_typed
from nncift.errors import ConfigError, RunError, printable

if TYPE_CHECKING:
    from cyclopts import App

Shell = Literal["bash", "zsh", "fish", "powershell"]
_NO_RUN = ".nncift-doctor"  # output of a run that is planned and never made: the default may hold another run


def doctor(pool: str | None = None, *, model: str | None = None, encoder: str | None = None) -> None:
    """Check this machine: versions, devices, threads, cache, disk, the hub, optional packages. For bug reports too.

    Args:
        pool: A file, folder or hub id: what a run on it would need here, as `nncift select POOL --dry-run` says.
        model: The language model of that run.
        encoder: Its sentence encoder.
    """
    from nncift.doctor import diagnosis

    given = {name: value for name, value in (("model", model), ("encoder", encoder)) if value is not None}
    if pool is None and given:
        raise ConfigError(f"--{next(iter(given))} is of a run on a pool, and none is named", "name the pool: POOL")
    print(diagnosis())
    if pool is None:
        print("What a run would take (LLM tokens, time, memory, disk): nncift doctor POOL, or the run with --dry-run")
        return
    from nncift.pipeline.configuration.configure import make_config
    from nncift.pipeline.plan import plan

    print(f"\n{as_typed(plan(make_config(pool, output=_NO_RUN, **given)))}")


def add_completion(app: App) -> None:
    """Give the command line `--install-completion`."""

    def install_completion(*, shell: Shell | None = None) -> None:
        """Let the shell complete commands and options.

        Args:
            shell: The shell; by default the one that this runs in.
        """
        from cyclopts.completion import ShellDetectionError

        try:
            path = app.install_completion(shell=shell)
        except ShellDetectionError as error:
            fix = "give --shell bash, zsh, fish or powershell"
            raise ConfigError("the shell cannot be detected", fix) from error
        except OSError as error:
            problem = f"cannot write {error.filename} ({error.strerror})"
            raise RunError(problem, "make it writable") from error
        print(printable(f"Written to {path}; it completes in new shells."))

    app.command(install_completion, name="--install-completion")
