"""Any trainer that is a transformers.Trainer, with its model wrapped and its steps told of.

Two classes stand around a trainer of a library. `_Asked` is first: it takes `memo=`, and turns off
what would do the plan's work a second time. `_Wraps` stands right before transformers.Trainer: so
adapters that a library puts in are in when the model is wrapped, and heads of TRL's that take the
log-probabilities of labels without logits go around the wrapped model.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from torch import nn
from transformers import TrainerCallback, TrainingArguments
from transformers.integrations.liger import apply_liger_kernel

from memo_planner.errors import format_bytes
from memo_train.errors import InvalidInput, PlanInfeasible, UnsupportedModel
from memo_train.memory import memory_report
from memo_train.planning import StepPlanner
from memo_train.runtime import causal_lm_of
from memo_train.trainer._checkpoint import last_complete, load_plans, save_plans
from memo_train.trainer._config import MemoConfig
from memo_train.trainer._figures import StepFigures
from memo_train.trainer._label_tiles import label_tiles
from memo_train.trainer._objective import Objective
from memo_train.trainer._shared import SharedLoss, SharedSequences
from memo_train.trainer._state import KeptState, check_fsdp, placed, state_of
from memo_train.verify import verify
from memo_train.wrap import planner_of, unwrap, wrap

_log = logging.getLogger("memo_train")

_INSTEAD = {
    "gradient_checkpointing": False,
    "gradient_checkpointing_kwargs": None,
    "activation_checkpointing": False,
    "activation_checkpointing_kwargs": None,
    "activation_offloading": False,
}
"""Settings of Transformers and TRL that would keep, swap or recompute in the plan's place."""


class _Asked:
    """First of a trainer's classes: what the user asks for, and what is shown to them."""

    memo: MemoConfig

    def __init__(self, *args: Any, memo: MemoConfig | None = None, **kwargs: Any) -> None:
        """memo: options of memo-train; everything else is the trainer's own."""
        self.memo = MemoConfig() if memo is None else memo
        self._memo_is_given = memo is not None
        if kwargs.get("peft_config") is not None:
            _refuse_wrapped(args[0] if args else kwargs.get("model"))
        for given in (*args, *kwargs.values()):
            if isinstance(given, TrainingArguments):
                _turn_off(given)
        if self.memo.sp != 1:
            SharedLoss(self, cast(Any, super()).compute_loss)  # before anything is made
        super().__init__(*args, **kwargs)
        self._accelerate = KeptState()
        for name in ("ref_model", "teacher_model"):
            self._wrap_reference(getattr(self, name, None))

    def _wrap_reference(self, reference: Any) -> None:
        """A model that is only compared with (DPO's, a teacher) runs by tiles, too."""
        trainer = cast(Any, self)
        # TRL shards it for FSDP2 as one piece, which comes whole whatever runs by tiles.
        if not isinstance(reference, nn.Module) or trainer.is_fsdp_enabled:
            return
        # Nobody trains it, so there is no step to plan, and nothing to save for one.
        reference.requires_grad_(False)
        model = trainer.accelerator.unwrap_model(reference)
        if _planner_or_none(model) is None:
            wrap(model, tile_tokens=self.memo.tile_tokens)

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As the trainer's own; True resumes from the last checkpoint that is complete.

        Where a run was killed while it saved its first one, there is none, and it starts anew.
        At the end the memory report is printed, and written to memory_report.txt in output_dir.
        """
        trainer = cast(Any, self)
        if resume_from_checkpoint is True:
            directory = Path(trainer.args.output_dir)
            found = last_complete(directory, trainer.args.world_size)
            if found is not None:
                resume_from_checkpoint = str(found)
            elif any(directory.glob("checkpoint-*")):
                resume_from_checkpoint = None
        with self._accelerate.in_place():
            result = cast(Any, super()).train(resume_from_checkpoint, *args, **kwargs)
        if trainer.args.should_save:
            text = trainer.memo_report()
            print(text)
            Path(trainer.args.output_dir, "memory_report.txt").write_text(text + "\n")
        return result

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """As the trainer's own, whatever other trainers the process has made since."""
        with self._accelerate.in_place():
            return cast(Any, super()).evaluate(*args, **kwargs)

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """As `evaluate`."""
        with self._accelerate.in_place():
            return cast(Any, super()).predict(*args, **kwargs)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """As the trainer's own; log-probabilities of labels go by tiles, backward included."""
        with label_tiles(cast(Any, self)._planner, self.memo.tile_tokens):
            loss: torch.Tensor = cast(Any, super()).training_step(*args, **kwargs)
        return loss

    def prediction_step(self, *args: Any, **kwargs: Any) -> Any:
        """As the trainer's own, in the same tiles."""
        with label_tiles(cast(Any, self)._planner, self.memo.tile_tokens):
            return cast(Any, super()).prediction_step(*args, **kwargs)

    def compute_loss(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """As the trainer's own; before the first one, with `verify`, a step both ways."""
        own: Callable[..., Any] = cast(Any, super()).compute_loss
        trainer = cast(Any, self)
        if trainer._shared is not None:
            own = SharedLoss(trainer, own)
        if self.memo.verify and torch.is_grad_enabled() and not trainer.memo_is_verified:
            trainer.memo_is_verified = True
            print(verify(Objective(self, own), {"inputs": inputs, "args": args, "kwargs": kwargs}))
        return own(model, inputs, *args, **kwargs)


class _Wraps(transformers.Trainer):
    """Right before transformers.Trainer: wraps its model, and looks at its steps."""

    memo: MemoConfig
    _memo_is_given: bool

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.memo_is_verified = False
        self._figures: StepFigures | None = None
        self._shared: SharedSequences | None = None
        self._liger: dict[str, Any] | None = None
        super().__init__(*args, **kwargs)
        _turn_off(self.args)
        if self.args.use_liger_kernel:
            # Before the model is wrapped, and not when training begins. The loss goes by tiles.
            config = self.args.liger_kernel_config or {}
            self._liger = config | {"fused_linear_cross_entropy": False}
            self.args.use_liger_kernel = False
        self._refuse_what_is_not_proven()
        if self.memo.sp != 1:
            if self.compute_loss_func is not None or self.label_smoother is not None:
                raise UnsupportedModel(
                    f"sp={self.memo.sp} takes the trainer's own loss, which is summed over ranks; "
                    "leave out compute_loss_func and label_smoothing_factor"
                )
            self._shared = SharedSequences.of(self.memo.sp, self.args.device.type)
            self.args.prediction_loss_only = True
        if self.model_init is None:
            self._wrap_here(self.model)
        self.add_callback(_Clock(self))

    def call_model_init(self, trial: Any = None) -> nn.Module:
        """A new model, wrapped."""
        model: nn.Module = super().call_model_init(trial)
        self._wrap_here(model)
        return model

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """As Transformers' own, and counted. A batch too large is tried smaller where asked for."""
        try:
            loss: torch.Tensor = super().training_step(*args, **kwargs)
        except PlanInfeasible as error:
            if not self.args.auto_find_batch_size:
                raise
            # What makes Accelerate try half of the batch is this text.
            raise torch.OutOfMemoryError(f"planned out of memory. {error}") from error
        if self._figures is not None:
            self._figures.ran()
        return loss

    def get_sp_size(self) -> int:
        """How many ranks have the same batch: Transformers counts rows and labels by it."""
        size: int = super().get_sp_size()
        return size if self._shared is None else self._shared.sp

    def _get_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        loader = super()._get_dataloader(*args, **kwargs)
        return loader if self._shared is None else self._shared.give_batches(loader)

    def evaluation_loop(self, dataloader: Any, *args: Any, **kwargs: Any) -> Any:
        """As Transformers' own; ranks that share sequences evaluate the loss alone."""
        if self._shared is not None:
            self._shared.check_evaluated(self.num_examples(dataloader), self.args.eval_batch_size)
        return super().evaluation_loop(dataloader, *args, **kwargs)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """As Transformers' own, with the figures of the steps since the last line of training."""
        if "loss" in logs and self._figures is not None:
            logs.update(self._of_all_ranks(self._figures.take()))
        super().log(logs, *args, **kwargs)

    def memo_report(self) -> str:
        """The memory report of the run so far, for people."""
        lines = [str(memory_report(self.model))]
        if self._figures is not None and self._figures.highest_bytes:
            highest = format_bytes(self._figures.highest_bytes)
            lines.insert(0, f"highest device memory of any step, model included: {highest}")
        return "\n".join(lines)

    def _save_rng_state(self, output_dir: str) -> None:
        # With what else a resumed run needs to go on bit for bit, and before the trainer's state,
        # which is written last and tells a complete checkpoint.
        super()._save_rng_state(output_dir)
        if self.args.should_save:
            save_plans(self._planner, Path(output_dir))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            cast(nn.Module, self.model).train()
            with self.accelerator.autocast():
                load_plans(self._planner, Path(checkpoint))

    @property
    def _planner(self) -> StepPlanner:
        return planner_of(self.accelerator.unwrap_model(self.model))

    def _wrap_here(self, model: nn.Module) -> None:
        """Wrap the model where it is trained. Raises: as `wrap`; InvalidInput."""
        planner = _planner_or_none(model)
        if planner is None:
            if any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
                cast(Any, model).gradient_checkpointing_disable()
                _say_off(["gradient_checkpointing"])
            if self._figures is not None:  # of another model, which model_init has replaced
                unwrap(self._figures.planner.wrapped.parts.causal_lm)
            if self._liger is not None:
                apply_liger_kernel(model, self._liger)  # type: ignore[no-untyped-call]
            mesh = None if self._shared is None else self._shared.mesh
            with placed(self, model):
                wrap(model, mesh=mesh, state=state_of(self), **self.memo.wrap_options())
            planner = planner_of(model)
        elif self._liger is not None:
            raise InvalidInput(
                "the model is wrapped already, and use_liger_kernel would put kernels into it; "
                "give the trainer the model unwrapped: it puts them in and wraps it"
            )
        elif self._memo_is_given and any(v is not None for v in self.memo.wrap_options().values()):
            raise InvalidInput(
                f"the model is wrapped already, with options of its own, and memo={self.memo} asks "
                "for others; give the trainer the model unwrapped, or leave them out of memo"
            )
        self._figures = StepFigures(planner)

    def _refuse_what_is_not_proven(self) -> None:
        """Raises: UnsupportedModel."""
        check_fsdp(self)
        parallelism = getattr(self.accelerator, "parallelism_config", None)
        if parallelism is not None and (parallelism.cp_enabled or parallelism.tp_enabled):
            raise UnsupportedModel(
                "Accelerate's context and tensor parallelism change what attention is given; "
                "leave cp_size and tp_size at 1, or share sequences by memo_train.wrap(mesh=)"
            )
        if self.args.n_gpu > 1:
            raise UnsupportedModel(
                f"{self.args.n_gpu} GPUs are visible to one process, over which Transformers lays "
                "nn.DataParallel; start the script with torchrun, or set CUDA_VISIBLE_DEVICES"
            )

    def _of_all_ranks(self, figures: dict[str, float]) -> dict[str, float]:
        """Tokens of all ranks together; everything else is of this one."""
        if self.args.world_size > 1:
            mine = torch.tensor(figures.get("tokens_per_s", 0.0), device=self.args.device)
            total = float(self.accelerator.reduce(mine))
            if figures:
                figures["tokens_per_s"] = total
        return figures


class _Clock(TrainerCallback):
    """Times whole steps; what lies between them (data, evaluation, saving) does not count."""

    def __init__(self, trainer: _Wraps) -> None:
        self._trainer = trainer
        self._began_s: float | None = None

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """Start anew: what was before is none of the run's."""
        if self._trainer._figures is not None:
            self._trainer._figures.begin()

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        """A step begins."""
        self._began_s = time.perf_counter()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Its optimiser has stepped."""
        if self._began_s is not None and self._trainer._figures is not None:
            self._trainer._figures.took(time.perf_counter() - self._began_s)


def with_memo(kind: type[Any], *, module: str | None = None) -> Any:
    """`kind`, a trainer derived from transformers.Trainer, with its steps under memo-train.

    It takes `memo=MemoConfig(...)` beside its own arguments. module: where it can be imported from,
    `kind`'s by default. Raises: InvalidInput.
    """
    if not (isinstance(kind, type) and issubclass(kind, transformers.Trainer)):
        raise InvalidInput(f"with_memo takes a class derived from transformers.Trainer, got {kind}")
    members = {"__module__": module or kind.__module__, "__doc__": kind.__doc__}
    return type(kind.__name__, (_Asked, kind, _Wraps), members)


class Trainer(_Asked, _Wraps):
    """transformers.Trainer with every step under memo-train: change the import, and nothing else.

    It takes `memo=MemoConfig(...)` beside the arguments of transformers.Trainer. The model is
    wrapped when the trainer is made, and stays so; a model that is wrapped already is taken as it
    is. Gradient checkpointing is turned off: the plan decides what is computed again. Log lines
    have the figures of `memo_train.trainer._figures`; checkpoints have what a resumed run needs to
    go on in the same tiles, so that on a CPU its losses are the uninterrupted run's to the bit.
    Raises: as `memo_train.wrap`, when it is made; PlanInfeasible in a step that does not fit.
    """


def _planner_or_none(model: nn.Module) -> StepPlanner | None:
    try:
        return planner_of(model)
    except UnsupportedModel:
        return None


def _refuse_wrapped(model: object) -> None:
    if isinstance(model, nn.Module) and _planner_or_none(causal_lm_of(model)) is not None:
        raise InvalidInput(
            "the model is wrapped already, and peft_config would put adapters into it; give the "
            "trainer the model unwrapped (memo_train.unwrap): it wraps it when they are in"
        )


def _turn_off(arguments: Any) -> None:
    """Turn off what the plan does instead, with one line that says so."""
    turned_off = [
        name for name in _INSTEAD if getattr(arguments, name, None) and not name.endswith("kwargs")
    ]
    for name, value in _INSTEAD.items():
        if hasattr(arguments, name):
            setattr(arguments, name, value)
    if turned_off and arguments.process_index == 0:
        _say_off(turned_off)


def _say_off(names: list[str]) -> None:
    _log.warning("%s is turned off: memo-train's plan decides what is kept", " and ".join(names))
