"""A plan and its file: what was measured and allowed, what is decided and expected."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path

from memo_planner.checks import check_fields, check_int, check_text
from memo_planner.codec import decode, encode, hash_of, read_document, write_document
from memo_planner.errors import InvalidInput, PlanFileError
from memo_planner.limits import Limits
from memo_planner.policy import Policy
from memo_planner.profile import Profile

BINDS = ("device", "host", "forward window", "backward window")


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Figures of one step under a policy. Seconds cover the blocks, not embedding or loss.

    Attributes:
        device_peak_bytes, device_peak_point: most bytes alive on the device, and where.
        device_room_bytes: what a limit must leave: the peak, and holes between tensors until each
            has its planned address.
        host_peak_bytes: bytes on the host at the end of forward.
        extra_s: seconds over a step without tiles that keeps everything:
            recompute_s + stall_s + the overhead of tiling and swapping.
        step_forward_s, step_backward_s: all blocks, with stalls and recomputation.
        binds: those of `BINDS` without which, one at a time, the plan would be faster.
    """

    device_peak_bytes: int
    device_peak_point: str
    device_room_bytes: int
    host_peak_bytes: int
    extra_s: float
    recompute_s: float
    stall_s: float
    step_forward_s: float
    step_backward_s: float
    binds: tuple[str, ...]

    def __post_init__(self) -> None:
        check_int("Prediction.device_peak_bytes", self.device_peak_bytes, 0, 2**128)
        check_int("Prediction.device_room_bytes", self.device_room_bytes, 0, 2**128)
        check_int("Prediction.host_peak_bytes", self.host_peak_bytes, 0, 2**128)
        check_text("Prediction.device_peak_point", self.device_peak_point)
        check_fields(self, tuple(f for f in self.__dataclass_fields__ if f.endswith("_s")))
        if self.binds != tuple(name for name in BINDS if name in self.binds):
            raise InvalidInput(f"Prediction.binds is {self.binds}; it holds some of {BINDS}, once")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The job around a rank's step: enough for step time and MFU.

    Attributes:
        strategy: what decided the policy. hardware, parallel: names for people.
        gpus: devices of the job; ranks_on_node: those that share one node's host memory.
        ranks_of_sequence: those that share one sequence. tensor, context, sequence: their degrees;
            zero_stage: of what all ranks share. All as in `Parallel`.
        parameters: numbers in the model.
        micro_steps: passes of a rank in one optimiser step.
        step_flops: of the whole job and one optimiser step, nothing counted twice.
        peak_flops: of one device.
        outside_s: head and loss, seconds of one micro step.
        efficiency: where the shares of peak come from that all seconds follow from; it begins with
            "assumption" where they were not found on this machine.

    Raises: InvalidInput.
    """

    strategy: str
    hardware: str
    parallel: str
    gpus: int
    ranks_on_node: int
    ranks_of_sequence: int
    tensor: int
    context: int
    sequence: int
    zero_stage: int
    parameters: int
    micro_steps: int
    step_flops: float
    peak_flops: float
    outside_s: float
    efficiency: str

    def __post_init__(self) -> None:
        for name in ("strategy", "hardware", "parallel", "efficiency"):
            check_text(f"Setting.{name}", getattr(self, name))
        counts = ("gpus", "ranks_on_node", "ranks_of_sequence", "micro_steps")
        for name in (*counts, "tensor", "context", "sequence", "parameters"):
            check_int(f"Setting.{name}", getattr(self, name), 1)
        check_int("Setting.zero_stage", self.zero_stage, 0, 3)
        check_fields(self, ("outside_s",))
        # A long step on many devices has more FLOPs than any other figure may be large.
        check_fields(self, ("peak_flops",), least=1.0)
        check_fields(self, ("step_flops",), least=1.0, most=2.0**120)

    def step_s(self, prediction: Prediction) -> float:
        """Seconds of one optimiser step; the optimiser itself is not in it."""
        blocks_s = prediction.step_forward_s + prediction.step_backward_s
        return self.micro_steps * (blocks_s + self.outside_s)

    def mfu(self, prediction: Prediction) -> float:
        """Model FLOPs per second over the devices' peak, from 0 to 1. Source: MEMO, set-up."""
        return self.step_flops / (self.step_s(prediction) * self.gpus * self.peak_flops)


FORMAT = "memo-plan"
VERSION = 7


def inputs_hash(
    profile: Profile, tokens: int, limits: Limits, setting: Setting | None = None
) -> str:
    """sha256, hexadecimal, of what a plan is made from; without a setting, of the other three."""
    inputs = {"profile": encode(profile), "tokens": tokens, "limits": asdict(limits)}
    if setting is not None:
        inputs["setting"] = asdict(setting)
    return hash_of(inputs)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The planner's answer. `save` and `load` keep it as JSON (docs/formats.md).

    `setting` is the job around the step where machine and model are known by name; a token is then
    one of the whole sequence, of which a rank has a part. Without it the profile was measured, and
    tokens are the rank's own.

    Raises: InvalidInput if the parts do not belong together.
    """

    version: int
    profile: Profile
    limits: Limits
    policy: Policy
    prediction: Prediction
    setting: Setting | None
    inputs_hash: str

    def __post_init__(self) -> None:
        check_int("Plan.version", self.version, VERSION, VERSION)
        if len(self.policy.blocks) != self.profile.num_blocks:
            raise InvalidInput(
                f"the policy has {len(self.policy.blocks)} blocks, "
                f"the profile {self.profile.num_blocks}"
            )
        if self.policy.num_groups != self.profile.num_groups:
            raise InvalidInput(
                f"the policy runs attention in {self.policy.num_groups} groups of heads, "
                f"the profile holds for {self.profile.num_groups}"
            )
        expected = inputs_hash(self.profile, self.policy.tokens, self.limits, self.setting)
        if self.inputs_hash != expected:
            raise InvalidInput(f"inputs_hash is {self.inputs_hash}, its inputs give {expected}")

    @classmethod
    def of(
        cls,
        *,
        profile: Profile,
        limits: Limits,
        policy: Policy,
        prediction: Prediction,
        setting: Setting | None = None,
    ) -> Plan:
        """A plan of the current version with the hash of its inputs."""
        return cls(
            version=VERSION,
            profile=profile,
            limits=limits,
            policy=policy,
            prediction=prediction,
            setting=setting,
            inputs_hash=inputs_hash(profile, policy.tokens, limits, setting),
        )

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON. Raises: OSError."""
        write_document(Path(path), {"format": FORMAT, **encode(self)})

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read a plan and check it: version, fields, types, hash of inputs, prediction.

        Raises: PlanFileError naming the file, what is wrong, and both values where two disagree.
        """
        document = read_document(Path(path), format=FORMAT, version=VERSION)
        del document["format"]
        try:
            plan = decode(cls, document, "plan")
            _check_prediction(plan)
        except InvalidInput as error:
            raise PlanFileError(f"{path}: {error}") from error
        return plan


def _check_prediction(plan: Plan) -> None:
    """Raises: InvalidInput if the prediction is not what the policy gives."""
    # The programme imports plans; only a plan that is read needs the programme.
    from memo_planner.programme import predict

    told = predict(plan.profile, plan.policy, plan.prediction.binds, plan.limits)
    expected = asdict(told)
    for name, value in asdict(plan.prediction).items():
        wanted = expected[name]
        # JSON keeps floats exactly, but another numpy may sum in another order.
        same = math.isclose(value, wanted) if isinstance(wanted, float) else value == wanted
        if not same:
            raise InvalidInput(f"prediction.{name} is {value!r}, its policy gives {wanted!r}")
