"""The `greencc` command: lazy subcommands, and the one place where errors become messages and exit codes."""

from __future__ import annotations

import importlib
import os
import select
import signal
import sys
from collections.abc import Iterable
from types import FrameType

import click

from greencc import __version__
from greencc.core.errors import ExitCode, GreenccError, did_you_mean

# name -> one-line help. The module greencc.cli.commands.<name> holds a click command called `command`.
_COMMANDS = {
    "compile": "Compile an ONNX model into a verified, measured bundle.",
    "verify": "Check a bundle's hashes, and its accuracy against the original model.",
    "recover": "Fine-tune a bundle's network with the original as its teacher (greencc[finetune]).",
    "measure": "Measure latency and energy of a bundle or model, interleaved with a baseline.",
    "estimate": "Estimate latency, energy and power on a device that is not at hand.",
    "lab": "The energy laboratory: test campaigns, calibration of this machine, device profiles.",
    "tune": "Find faster kernels for a model, and keep them for its compiles; list, export, import them.",
    "cache": "List, verify and prune what compiles keep for later ones.",
    "run": "Run a bundle on inputs from an .npz file.",
    "trust": "Let the compiled code of a bundle run here, list what may, or withdraw it.",
    "inspect": "Describe a model or a bundle: inputs, operators, parameters, MACs, layers.",
    "lint": "Find what TensorRT would refuse, get wrong or run slowly in a model or a bundle.",
    "devices": "Machines that models are built, verified and measured on, over SSH: add, list, probe.",
    "targets": "List the targets and what their kernels can do here.",
    "passes": "List the passes and their options.",
    "doctor": "Say what can run on this machine, what is missing and how to get it.",
    "explain": "Tell why a layer of a bundle is as it is: its options, what was chosen, and why.",
    "report": "Print a bundle's report, or write it as HTML, Markdown or JSON.",
}


class _LazyGroup(click.Group):
    """A group that imports a command's module when it is run, not when help is printed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command = importlib.import_module(f"greencc.cli.commands.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in _COMMANDS:
            raise click.UsageError(f"no command {args[0]!r}: {did_you_mean(args[0], _COMMANDS)}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


@click.group(
    cls=_LazyGroup,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, "-V", "--version", prog_name="greencc")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Energy-aware model-compression compiler.

    An ONNX model goes in; an optimized, verified and measured artifact comes out.

    \b
    greencc compile model.onnx --target cpu --calibration data.npz --eval held-out.npz
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def run() -> None:
    """Entry point: run the command line and exit with its documented code."""
    sys.exit(_run(sys.argv[1:]))


def _run(arguments: list[str]) -> int:
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _terminate)
    try:
        result = main.main(arguments, prog_name="greencc", standalone_mode=False)
    except GreenccError as error:
        _complain(error.message, error.hint, getattr(error, "__notes__", ()))
        return int(error.exit_code)
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "greencc"
        _complain(error.format_message(), f"see '{command} --help'")
        return int(ExitCode.USAGE)
    except click.ClickException as error:
        _complain(error.format_message(), None)
        return int(ExitCode.USAGE)
    except (KeyboardInterrupt, click.Abort) as error:
        # click makes an Abort of an interrupt, whose notes say how to go on.
        notes = getattr(error.__cause__ or error, "__notes__", ())
        _complain("interrupted; nothing was left half-written", None, notes)
        return int(ExitCode.INTERRUPTED)
    except BrokenPipeError:
        return _reader_left()
    except SystemExit as error:
        # rich and click turn a broken pipe into this; rich has put something else in its place by then.
        if isinstance(error.__context__, BrokenPipeError) or _stdout_is_closed():
            return _reader_left()
        raise
    except MemoryError:
        _complain("out of memory", "use fewer or smaller samples per batch, or a machine with more memory")
        return int(ExitCode.BAD_INPUT)
    except Exception as error:
        if os.environ.get("GREENCC_DEBUG"):
            raise
        _complain(
            f"internal error: {type(error).__name__}: {error}",
            "this is a bug in greencc; run again with GREENCC_DEBUG=1 for the traceback and report it",
        )
        return int(ExitCode.INTERNAL)
    return result if isinstance(result, int) else int(ExitCode.OK)


def _stdout_is_closed() -> bool:
    """True for a pipe that nobody reads any more."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def _reader_left() -> int:
    """The reader of our standard output went away (`greencc ... | head`): not an error of ours."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return int(ExitCode.OK)


def _terminate(signum: int, frame: FrameType | None) -> None:
    """A polite kill takes the same way out as Ctrl-C, so that temporary folders are removed."""
    raise KeyboardInterrupt


def _complain(message: str, hint: str | None, notes: Iterable[str] = ()) -> None:
    click.echo(f"greencc: {message}", err=True)
    for line in (hint, *notes):
        if line:
            click.echo(f"  {line}", err=True)
