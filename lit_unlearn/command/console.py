"""Entry points: what is told of them, when the heavy modules come, and what the terminal shows of an error."""

from __future__ import annotations

import errno
import logging
import os
import sys
import textwrap
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from importlib import import_module
from typing import Any

from lit_unlearn.command.arguments import Arguments, parse
from lit_unlearn.command.fields import Families, explain
from lit_unlearn.errors import Preempted, UserError, is_of_another_process

COMMANDS = {
    "train": "unlearn: evaluate, train, evaluate, save",
    "finetune": "only make the target model (full set) and the retain model (retain set)",
    "evaluate": "put the benchmark's questions to a saved model",
    "alternates": "alternate answers to the forget questions, told by the original model (AltPO)",
    "sweep": "many runs from one file, here or as a SLURM array: their points, state and numbers",
    "objectives": "the objectives: what each needs, its fields, defaults and paper",
    "speed": "time and memory of a step, the field's plain recipe against ours; plan=true: what fits on which card",
}
"""What ``python -m lit_unlearn`` lists."""
_CHATTER = (
    r".*does not have many workers.*",
    r".*module\(s\) in eval mode.*",  # the frozen reference is meant to be
    r".*Checkpoint directory .* exists and is not empty.*",
    r".*LeafSpec.*",
    r".*TreeSpec.*",
    r".*The `srun` command is available on your system but is not used.*",
    r".*barrier\(\): using the device under current context.*",
)
_LOUD = ("lightning", "lightning.pytorch", "lightning.fabric", "transformers")
"""Loggers with handlers of their own."""
_QUIET = (*_LOUD[:3], "DeepSpeed", "torchao", "bitsandbytes", "torch.utils._pytree", "transformers.generation")

_GONE = (
    "another process of this run is gone or has not answered in strategy.timeout_minutes: mend what its own error "
    "says, above or in its log"
)


@dataclass(frozen=True)
class Command:
    """``python -m lit_unlearn.NAME``."""

    name: str
    """In ``COMMANDS``."""
    load: Callable[[Arguments], Any]
    """Reads the command line; imports no torch, so that a wrong key is answered at once."""
    stages: tuple[str, ...] | Callable[[Any], tuple[str, ...]]
    """``package.module:function``, called with what ``load`` read, one after the other; the module of a stage is
    imported when the stage before has passed, since the heavy ones take seconds. Or what names them, of what was read,
    where verbs have their own."""
    usage: str = "conf=NAME [key=value ...]"
    example: str = ""
    schema: type | None = None
    """Dataclass of its settings, for ``SECTION=?``; None: it has none."""
    families: Families = field(default_factory=dict)
    words: bool = False
    """It takes a verb or paths."""
    resumes: bool = False
    """``resume=true`` goes on where an interruption left it."""
    listing: Callable[[], Mapping[str, str]] = dict
    """Further lines of ``--help``."""

    def __call__(self, argv: list[str]) -> None:
        """Raises UserError for whatever the user can mend."""
        arguments = parse(argv, self.words)
        if arguments.help:
            print(self.help())
            return
        if arguments.asked:
            if self.schema is None:
                raise UserError(f"{arguments.asked[0]}=?: {self.name} has no settings")
            print("\n\n".join(explain(self.schema, key, self.families) for key in arguments.asked))
            return
        read = self.load(arguments)
        for stage in self.stages(read) if callable(self.stages) else self.stages:
            module, _, name = stage.partition(":")
            function = getattr(import_module(module), name)
            _hush_loggers()
            function(read)

    def help(self) -> str:
        """What it does, how arguments are written, an example."""
        lines = {"conf=NAME": "a file of ./conf or of the package, or conf=PATH of any YAML file"}
        lines = lines if "conf=" in self.usage else {}
        if self.schema is not None:
            sections = ", ".join(field.name for field in fields(self.schema))
            lines |= {
                "key=value": "any setting, e.g. " + (self.example.split() or ["seed=1"])[-1] + "; null switches off",
                "SECTION=?": "prints a section's settings with type, default and meaning",
                "settings": sections,
            }
        lines |= self.listing()
        width = max(map(len, lines), default=0)
        told = [
            textwrap.fill(text, 110, initial_indent=f"  {key:<{width}}  ", subsequent_indent=" " * (width + 4))
            for key, text in lines.items()
        ]
        call = f"python -m lit_unlearn.{self.name}"
        example = [f"\nexample:\n  {call} {self.example}"] if self.example else []
        return "\n".join([f"{call} {self.usage}\n\n{COMMANDS[self.name]}\n", *told, *example]).rstrip()


def start(command: Command) -> None:
    """Run an entry point: user errors end with one line and exit code 2; ``debug=true`` shows the traceback."""
    argv = sys.argv[1:]
    hush()
    try:
        command(argv)
    except UserError as error:
        if "debug=true" in map(str.lower, argv):
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # the reader of a pipe has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT) or "debug=true" in map(str.lower, argv):
            raise
        where = f" ({error.filename})" if error.filename else ""
        print(f"error: {error.strerror}{where}; make room, then go on with resume=true", file=sys.stderr)
        sys.exit(2)
    except Preempted as told:
        print(str(told), end="\n" if str(told) else "", file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(told.code)  # as below
    except RuntimeError as error:
        if not is_of_another_process(error) or "debug=true" in map(str.lower, argv):
            raise
        going_on = "; then go on with resume=true" if command.resumes else ""
        said = str(error).strip().splitlines()[0][:200]
        print(f"error: {_GONE}{going_on} ({said})", file=sys.stderr, flush=True)
        os._exit(1)  # its threads still wait for the other
    except (KeyboardInterrupt, SystemExit):  # Lightning turns the first into the second
        going_on = "resume=true goes on from there" if command.resumes else "start it again"
        print(f"\ninterrupted: what was written is whole; {going_on}", file=sys.stderr)
        sys.stdout.flush()
        os._exit(130)  # threads of the libraries keep the interpreter from ending, about one time in four


def hush() -> None:
    """Of the libraries' chatter, what nobody can act on; before they are imported."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING, handlers=[_ToStandardError()])
    logging.getLogger("lit_unlearn").setLevel(logging.INFO)
    _hush_loggers()
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # also transformers' own bars, as of "Writing shards"
    for message in _CHATTER:
        warnings.filterwarnings("ignore", message)


def _hush_loggers() -> None:
    """Again when a library has been imported: some set their level, or write beside the display, on import."""
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.ERROR)
    for name in _LOUD:
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
    logging.getLogger("transformers.modeling_utils").addFilter(_is_no_table)


def _is_no_table(record: logging.LogRecord) -> bool:
    """Of weights that do not fit their model, in ten lines and more; our own error names the first of them."""
    return "LOAD REPORT" not in str(record.msg)


class _ToStandardError(logging.Handler):
    """To whatever the standard error is at the moment: a display that is open takes it over."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr, flush=True)
