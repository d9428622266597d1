"""The profiles of a wrapped model, made at `wrap`, so that no forward waits for one.

One is measured for each kind of step that can be foreseen: with masks and without, of one sequence
and of several, in the model's own types and under autocast. It serves every batch and length, and
is kept on disk. In a precision that was not measured the highest figures of all hold.

`MEMO_TRAIN_MEASURE_AHEAD=0` measures each kind in the first step of it instead: for tests and short
scripts, which run one kind of step of a model that nobody trains, and would measure eight.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from itertools import product
from typing import Any

import torch
from tqdm import tqdm

from memo_planner import InvalidInput, Link, Profile
from memo_planner.codec import decode, encode
from memo_planner.policy import TilePlace
from memo_planner.profile import BlockTimes
from memo_train.errors import UnsupportedModel
from memo_train.runtime import WrappedModel, precision, runnable, without_user_hooks
from memo_train.trace import (
    LONGEST_PROFILED_TOKENS,
    REPEATS,
    Effort,
    KeptProfile,
    PlainSteps,
    Way,
    for_two_sequences,
    measure_link,
    measure_profile,
    model_key,
)

# As Transformers' configurations call the rows of learned position tables.
_POSITION_TABLES = ("max_position_embeddings", "n_positions", "max_seq_len")
_TOO_LONG = (UnsupportedModel, torch.OutOfMemoryError)
"""What a profile's run ends in beyond a model's longest sequence, and where memory is short."""

_CANNOT_RUN = (*_TOO_LONG, TypeError, AttributeError, KeyError, AssertionError)
"""What it ends in where a model takes no such batch."""

_LEAST_PROFILED_TOKENS = 16
"""Of a profile in memory that is too short for a longer one: sixteen tiles of one token."""


AHEAD_VARIABLE = "MEMO_TRAIN_MEASURE_AHEAD"
"""Environment variable; 0: nothing is measured before a step asks for it."""

_HALVES = frozenset((torch.bfloat16, torch.float16))
_SILENT_S = 2.0
"""Before a bar shows how far it is; kept profiles take no such time."""


@dataclass(frozen=True, kw_only=True)
class StepKind:
    """Which steps: precision, pre's tensors parked, with a mask, of one sequence or of several.

    num_groups: of heads, as in `Policy`.
    """

    precision: str
    park_pre: bool
    masked: bool
    alone: bool
    num_groups: int = 1


def _kind_of(fields_of_kind: object) -> StepKind:
    """Raises: InvalidInput."""
    wanted: dict[str, type] = {"precision": str, "park_pre": bool, "masked": bool}
    wanted |= {"alone": bool, "num_groups": int}
    if not isinstance(fields_of_kind, dict) or wanted != {
        name: type(value) for name, value in fields_of_kind.items()
    }:
        raise InvalidInput(f"a kind of step is {fields_of_kind!r}; it must have {sorted(wanted)}")
    return StepKind(**fields_of_kind)


class Profiles:
    """Finds the profile for a kind of step of `wrapped`.

    lifted: makes a context without the caps that `wrap` has set.
    """

    def __init__(
        self, wrapped: WrappedModel, lifted: Callable[[], AbstractContextManager[None]]
    ) -> None:
        self._wrapped, self._lifted = wrapped, lifted
        self.link: Link | None = None
        """Of the device to the host, where it was measured with other ranks."""
        self._by_state: dict[Hashable, _ProfilesOfState] = {}
        self._parks = wrapped.device.torch_device.type == "cuda"  # where it takes no time
        self._num_groups = 1

    def measure(self, *, limited: bool, num_groups: int) -> None:
        """Profile the model as it is now for all steps that can be foreseen.

        limited: whether memory may be so short that steps park what pre saves on the host, and run
        attention in `num_groups` groups of heads where that is more than one.
        A model that cannot be run so is profiled in its first step, which says why if it must.
        """
        self._parks = self._parks or limited
        self._num_groups = num_groups if self._parks else 1
        self._of_state()

    def of(self, kind: StepKind, tokens: int) -> Profile:
        """For steps of `kind` and of any length; `tokens` is the length that asks.

        Raises: whatever a model raises that cannot be run on its ids alone.
        """
        return self._of_state().of(kind, tokens)

    def export(self) -> dict[str, Any] | None:
        """The profiles of the model as it is, as JSON types; None if none were made yet."""
        state = self._wrapped.fingerprint.state(trains=torch.is_grad_enabled())
        found = self._by_state.get(state)
        return None if found is None else found.export()

    def adopt(self, document: dict[str, Any]) -> bool:
        """Take the profiles of `export` in place of what was measured here.

        Whether they are of this model, as it is, on such a machine. Raises: InvalidInput.
        """
        state = self._wrapped.fingerprint.state(trains=torch.is_grad_enabled())
        # Not measured first, where nothing has been: of ranks that share steps, one alone measures.
        found = self._by_state.get(state) or self._unmeasured(state)
        if not found.adopt(document):
            return False
        self._by_state[state] = found
        return True

    def _of_state(self) -> _ProfilesOfState:
        """The profiles of the model as it is: its dtypes, attention function, what is trained."""
        state = self._wrapped.fingerprint.state(trains=torch.is_grad_enabled())
        if state not in self._by_state:
            found = self._unmeasured(state)
            found.measure_all(parks=self._parks, num_groups=self._num_groups)
            self._by_state[state] = found
        return self._by_state[state]

    def _unmeasured(self, state: Hashable) -> _ProfilesOfState:
        return _ProfilesOfState(self._wrapped, self._lifted, state, self.link)


class _ProfilesOfState:
    """The profiles of a model while it is as `state` says."""

    def __init__(
        self,
        wrapped: WrappedModel,
        lifted: Callable[[], AbstractContextManager[None]],
        state: Hashable,
        link: Link | None,
    ) -> None:
        self._wrapped, self._lifted, self._state = wrapped, lifted, state
        self._link_of_all = link
        self._found: dict[StepKind, Profile] = {}
        self._plain: dict[str, PlainSteps] = {}
        self._model_key = model_key(wrapped)
        self._most_tokens = LONGEST_PROFILED_TOKENS
        self._where = wrapped.device.torch_device.type
        self._is_ahead = os.environ.get(AHEAD_VARIABLE) != "0"

    def measure_all(self, *, parks: bool, num_groups: int) -> None:
        """Whatever a step may need that can be foreseen, as far as the model can be run so."""
        if not self._is_ahead:
            return
        # Plain steps come before those that are compared with them.
        savings = [(False, 1)] + [(True, 1)] * parks + [(True, num_groups)] * (num_groups > 1)
        ways = product(savings, (False, True), (True, False))
        steps = list(product(self._autocast_dtypes(), ways))
        for dtype, ((park_pre, groups), masked, alone) in tqdm(
            steps,
            desc="memo-train measures the model, once on a machine",
            unit="kind of step",
            delay=_SILENT_S,
            leave=False,
            disable=None,
        ):
            with torch.autocast(self._where, dtype, enabled=dtype is not None):
                name = precision(self._where)
                kind = StepKind(
                    precision=name,
                    park_pre=park_pre,
                    masked=masked,
                    alone=alone,
                    num_groups=groups,
                )
                with suppress(*_CANNOT_RUN):
                    self._found[kind] = self._find(kind, 1)

    def of(self, kind: StepKind, tokens: int) -> Profile:
        """As `Profiles.of`."""
        if kind not in self._found:
            alike = [
                profile
                for other, profile in self._found.items()
                if replace(kind, precision=other.precision) == other
            ]
            # Nothing alike: it could not be run before, or the step is refused unless it parks.
            ahead = alike and self._is_ahead
            self._found[kind] = _highest(alike) if ahead else self._find(kind, tokens)
        return self._found[kind]

    def export(self) -> dict[str, Any]:
        """As `Profiles.export`."""
        profiles = [[asdict(kind), encode(profile)] for kind, profile in self._found.items()]
        return {"model": self._model_key, "state": repr(self._state), "profiles": profiles}

    def adopt(self, document: dict[str, Any]) -> bool:
        """As `Profiles.adopt`."""
        given = (document.get("model"), document.get("state"))
        profiles = document.get("profiles")
        if given != (self._model_key, repr(self._state)) or not isinstance(profiles, list):
            return False
        self._found = {
            _kind_of(kind): decode(Profile, profile, "a profile") for kind, profile in profiles
        }
        return True

    def _autocast_dtypes(self) -> tuple[torch.dtype | None, ...]:
        """None stands for no autocast. On the CPU float16 is rare, and each takes its time.

        A model of 16-bit numbers is not trained under autocast to the other ones.
        """
        usual: tuple[torch.dtype, ...] = (torch.bfloat16,)
        if self._where == "cuda":
            usual += (torch.float16,)
        usual = tuple(d for d in usual if d in self._dtypes or not self._dtypes <= _HALVES)
        is_on = torch.is_autocast_enabled(self._where)
        now = (torch.get_autocast_dtype(self._where),) if is_on else ()
        return tuple(dict.fromkeys((None, *now, *usual)))

    def _find(self, kind: StepKind, tokens: int) -> Profile:
        """Kept on disk or measured; where model or memory is too small, from shorter runs."""
        longest = self._longest(tokens, kind)
        while True:
            try:
                return self._kept(kind, longest)
            except _TOO_LONG as error:
                in_memory = isinstance(error, torch.OutOfMemoryError)
                # Beyond the model's table: only the step's own length is sure to be allowed.
                shorter = longest // 2 if in_memory else min(tokens, longest)
                if shorter == longest or shorter < _LEAST_PROFILED_TOKENS:
                    raise
                longest = shorter
                if in_memory:
                    # Memory stays short: later profiles begin here.
                    self._most_tokens = shorter

    def _longest(self, tokens: int, kind: StepKind) -> int:
        """Tokens of a profile. A step beyond the model's table shows that it needs none."""
        table = self._table_tokens() or LONGEST_PROFILED_TOKENS
        # What plain runs are too large for, those by groups of heads may fit.
        most = LONGEST_PROFILED_TOKENS if kind.num_groups > 1 else self._most_tokens
        return min(LONGEST_PROFILED_TOKENS, most, max(table, tokens, 1))

    @cached_property
    def _link(self) -> Link:
        """Of this process now, for all profiles that were kept: on a GPU it pins buffers."""
        return self._link_of_all or measure_link(self._wrapped.device)

    def _table_tokens(self) -> int | None:
        """Tokens of the model's longest sequence by its configuration; None if that names none."""
        config = getattr(self._wrapped.parts.causal_lm, "config", None)
        tables = [getattr(config, name, None) for name in _POSITION_TABLES]
        return min([n for n in tables if type(n) is int], default=None)

    def _kept(self, kind: StepKind, longest: int) -> Profile:
        """The profile from runs of at most `longest` tokens, made on this machine now or before."""
        repeats = 1 if self._found and self._where == "cpu" else REPEATS
        ranks = self._wrapped.ranks
        asked: tuple[object, ...] = (self._state, kind, longest, repeats)
        # One rank's attention is over the tokens of all.
        asked += () if ranks is None else (ranks.way,)
        kept = KeptProfile.of(self._model_key, asked)
        profile = kept.load(self._wrapped, self._link)
        if profile is None:
            masked = self._wrapped.masked
            # Its length is not the step's, so whether it fits the cap says nothing of the step.
            with self._lifted():
                try:
                    profile = replace(self._measure(kind, longest, repeats), link=self._link)
                finally:
                    # Whether the last call had a mask: a padded run says nothing of the next step.
                    self._wrapped.masked = masked
            kept.save(profile)
        return profile

    def _measure(self, kind: StepKind, longest: int, repeats: int) -> Profile:
        if self._wrapped.fingerprint.is_away:
            raise UnsupportedModel(
                "the model could not be profiled for such a step at wrap, and cannot be while "
                "FSDP2 brings its parameters in and out; run one before fully_shard"
            )
        one = None if kind.alone else self.of(replace(kind, alone=True), longest)
        causal_lm = self._wrapped.parts.causal_lm
        with without_user_hooks(causal_lm), runnable(causal_lm, "on the short steps that plan it"):
            if one is not None:
                return for_two_sequences(self._wrapped, one, longest)
            return measure_profile(
                self._wrapped,
                1,
                longest,
                Way(
                    place=TilePlace.KEEP,
                    park_pre=kind.park_pre,
                    padded=kind.masked,
                    num_groups=kind.num_groups,
                ),
                effort=Effort(
                    repeats=repeats,
                    timed_tokens=self._table_tokens() or longest,
                    plain=self._plain_steps(kind),
                    times=self._known_times(),
                ),
            )

    def _known_times(self) -> BlockTimes | None:
        """Of a model of 16-bit numbers, which takes as long under autocast; None: not known.

        Elsewhere than on a device that runs behind, runs that tell bytes tell seconds as well.
        """
        if not self._found or not self._wrapped.device.runs_behind or not self._dtypes <= _HALVES:
            return None
        return next(iter(self._found.values())).times

    @property
    def _dtypes(self) -> set[torch.dtype]:
        return {p.dtype for p in self._wrapped.parts.causal_lm.parameters()}

    def _plain_steps(self, kind: StepKind) -> PlainSteps | None:
        """What steps of `kind` are compared with; None for plain ones, or if there are none."""
        plain = replace(kind, park_pre=False, masked=False, num_groups=1)
        found = self._found.get(plain)
        # What was put together from other precisions has no kinds to compare with.
        if found is None or plain == kind or not found.kinds:
            return None
        if kind.precision not in self._plain:
            self._plain[kind.precision] = PlainSteps(profile=found)
        return self._plain[kind.precision]


def _highest(profiles: Sequence[Profile]) -> Profile:
    """A profile with the bytes of all of them, where each is highest."""
    names = [f.name for f in fields(Profile) if "_per_token" in f.name]
    most = {name: max(getattr(each, name) for each in profiles) for name in names}
    lines = tuple(dict.fromkeys(line for each in profiles for line in each.peaks))
    highest = max(profiles, key=lambda each: each.tile_bytes_per_token)
    # What is alive in such a step nobody measured: its peak is told with the room for holes.
    return replace(highest, peaks=lines, kinds=(), kind_of_block=(), **most)
