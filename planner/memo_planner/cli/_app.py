"""The `memo-plan` command line, to which commands add themselves, and the options of a job."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, fields, replace
from typing import Annotated, Any, get_type_hints

import typer
from rich.console import Console

from memo_planner.checks import check_number
from memo_planner.errors import InvalidInput, MemoError, PlanInfeasible
from memo_planner.hardware import (
    FIGURES,
    NAMED,
    Efficiency,
    Hardware,
    MachineFile,
    efficiency_on,
    machine,
    this_machine,
)
from memo_planner.limits import Limits
from memo_planner.strategies import Job
from memo_planner.workload import MODELS, ModelDims, Parallel, Workload, model_named

BAD_INPUT = 2
WILL_NOT_FIT = 3
_PLAIN_WIDTH = 100

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Plan a training step, and see what its plan does with memory.",
)

GIB = 2**30
HERE = "here"
_MEASURER = ("memo_train.calibration", "measure_machine")
_MEASURER_NEEDS = ("torch", "greenlet", "memo_train")
_DEFAULT_ZERO = 3


@app.callback()
def _commands() -> None:
    """Keep every command a command of its own."""


@contextmanager
def clear_errors(code: int = BAD_INPUT) -> Iterator[None]:
    """Print an error of the project's own on one line of stderr and exit with `code`.

    What will not fit exits with `WILL_NOT_FIT` whatever the code.
    """
    try:
        yield
    except MemoError as error:
        line = " ".join(str(error).split())
        typer.echo(f"memo-plan: {line}", err=True)
        will_not_fit = isinstance(error, PlanInfeasible)
        raise typer.Exit(WILL_NOT_FIT if will_not_fit else code) from error


def plain_console() -> Console:
    """A console for tables; text of a fixed width without colours where stdout is no terminal."""
    console = Console(highlight=False, soft_wrap=True)
    if console.is_terminal:
        return console
    return Console(highlight=False, soft_wrap=True, width=_PLAIN_WIDTH, color_system=None)


@dataclass(frozen=True, kw_only=True)
class JobOptions:
    """What the command line says of a job; `job` makes one of it. Host memory is of a node."""

    model: Annotated[
        str | None,
        typer.Option(help="7b, 13b, 30b, 65b, llama-3-8b, or a Hugging Face config.json."),
    ] = None
    gpus: Annotated[int, typer.Option(help="Devices of the job.")] = 8
    hardware: Annotated[
        str,
        typer.Option(
            help=f"A machine (see `hardware`), `{HERE}`: this one, by NVML, or a machine.json."
        ),
    ] = "a800-80g-x8"
    host_gib: Annotated[
        float | None, typer.Option(help="Host memory of a node for all its ranks, GiB.")
    ] = None
    device_gib: Annotated[
        float | None, typer.Option(help="Device memory of a rank for tensors, GiB.")
    ] = None
    batch: Annotated[int, typer.Option(help="Sequences of one optimiser step.")] = 1
    tensor: Annotated[int, typer.Option(help="Tensor parallel degree.")] = 1
    context: Annotated[int, typer.Option(help="Context parallel (ring) degree.")] = 1
    sequence: Annotated[
        int | None,
        typer.Option(help="Sequence parallel (Ulysses) degree; all other ranks by default."),
    ] = None
    zero: Annotated[int, typer.Option(help="ZeRO stage; 3 is FSDP's full shard.")] = _DEFAULT_ZERO
    dtype_bytes: Annotated[int, typer.Option(help="2: bf16; 4: fp32.")] = 2
    attention_once: Annotated[
        bool,
        typer.Option(
            "--attention-once", help="Never run attention again: what memo_train can carry out."
        ),
    ] = False
    no_torch: Annotated[
        bool,
        typer.Option("--no-torch", help="Read a config.json by its fields, as without torch."),
    ] = False
    figure: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Override a figure of the machine; repeatable."),
    ] = None

    def job(self, tokens: int) -> Job:
        """The job at that length. Raises: InvalidInput."""
        named, efficiency = machine_named(self.hardware)
        hardware = overridden(named, self.figure or [])
        model = self.dims()
        workload = Workload(
            model=model,
            tokens=tokens,
            batch=self.batch,
            parallel=self._parallel(model),
            dtype_bytes=self.dtype_bytes,
        )
        job = Job.of(workload, hardware, efficiency)
        ranks = workload.ranks_on_node(hardware.gpus_per_node)
        limits = self.limits(job.limits, ranks)
        return replace(job, limits=limits, attention_again=not self.attention_once)

    def dims(self) -> ModelDims:
        """The model. Raises: InvalidInput."""
        if self.model is None:
            raise InvalidInput(f"--model is missing; known: {', '.join(MODELS)}, or a config.json")
        return model_named(self.model, by_fields=self.no_torch, dtype_bytes=self.dtype_bytes)

    def _parallel(self, model: ModelDims) -> Parallel:
        fixed = {"tensor": self.tensor, "context": self.context, "zero_stage": self.zero}
        if self.sequence is not None:
            return Parallel(gpus=self.gpus, sequence=self.sequence, **fixed)
        alone = Parallel(gpus=self.gpus, **fixed)
        heads = model.num_heads // self.tensor
        # As many as divide both the heads and the ranks left; the others are data parallel.
        fitting = [n for n in range(1, heads + 1) if alone.data % n == 0 and heads % n == 0]
        return Parallel(gpus=self.gpus, sequence=max(fitting, default=1), **fixed)

    def limits(self, limits: Limits, ranks: int) -> Limits:
        """`limits` of a rank with the options' own in their place; `ranks` share the host's."""
        device_bytes, host_bytes = limits.device_bytes, limits.host_bytes
        if self.device_gib is not None:
            device_bytes = _bytes("--device-gib", self.device_gib)
        if self.host_gib is not None:
            host_bytes = _bytes("--host-gib", self.host_gib) // ranks
        return Limits(device_bytes=device_bytes, host_bytes=host_bytes)


def with_job_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command, whose first parameter is a `JobOptions`, an option for each of its fields."""
    # typer reads options off the signature, so the fields become parameters of one.
    own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]
    hints = get_type_hints(JobOptions, include_extras=True)
    keyword = inspect.Parameter.KEYWORD_ONLY
    options = [
        inspect.Parameter(
            each.name,
            keyword,
            annotation=hints[each.name],
            default=inspect.Parameter.empty if each.default is MISSING else each.default,
        )
        for each in fields(JobOptions)
    ]
    names = {each.name for each in options}

    @functools.wraps(command)
    def run(**values: Any) -> None:
        job = JobOptions(**{n: v for n, v in values.items() if n in names})
        command(job, **{n: v for n, v in values.items() if n not in names})

    parameters = [*options, *(each.replace(kind=keyword) for each in own)]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    return run


def machine_named(name: str) -> tuple[Hardware, Efficiency]:
    """A named machine, the one this runs on, or that of a file; and the shares of peak it reaches.

    Raises: InvalidInput; PlanFileError.
    """
    if name.endswith(".json"):
        measured = MachineFile.load(name)
        return measured.hardware, measured.efficiency
    named = this_machine() if name == HERE else machine(name)
    return named, efficiency_on(named.name)


def measured_machine() -> MachineFile:
    """This machine, measured now by memo-train. Raises: InvalidInput where that cannot be imported.

    The planner itself needs no torch, so whoever measures is looked for only here.
    """
    missing = [name for name in _MEASURER_NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        raise InvalidInput(
            f"--measure runs the machine and needs {', '.join(missing)}; install memo-train with "
            f"torch, or name a machine: {', '.join(NAMED)}"
        )
    module, function = _MEASURER
    measure: Callable[[], MachineFile] = getattr(importlib.import_module(module), function)
    return measure()


def overridden(hardware: Hardware, texts: list[str]) -> Hardware:
    """`hardware` with figures such as `peak_flops=4e14` replaced. Raises: InvalidInput."""
    figures = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or name not in FIGURES:
            raise InvalidInput(f"--figure {text!r} is not NAME=VALUE with one of {FIGURES}")
        figures[name] = check_number(name, _number(text, value))
    return hardware.with_figures("the command line", **figures) if figures else hardware


def _number(text: str, value: str) -> float:
    try:
        return float(value)
    except ValueError as error:
        raise InvalidInput(f"--figure {text!r}: {value!r} is no number") from error


def _bytes(option: str, gib: float) -> int:
    number = check_number(option, gib)
    if number * GIB < 1:
        raise InvalidInput(f"{option} is {gib}; it must be more than 0")
    return int(check_number(f"{option} in bytes", number * GIB))
