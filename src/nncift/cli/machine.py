"""`nncift doctor` and `nncift --install-completion` on the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from nncift.errors import ConfigError, RunError, printable

if TYPE_CHECKING:
    from cyclopts import App

Shell = Literal["bash", "zsh", "fish", "powershell"]


def doctor() -> None:
    """Check this machine: versions, devices, threads, cache, disk, the hub, optional packages. For bug reports too."""
    from nncift.doctor import diagnosis

    print(diagnosis())


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
