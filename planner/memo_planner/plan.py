"""A plan: what was measured, what was allowed, what was decided and what is expected."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from memo_planner.checks import check_int
from memo_planner.codec import decode, encode, read_document, write_document
from memo_planner.errors import InvalidInput, PlanFileError
from memo_planner.limits import Limits
from memo_planner.policy import Policy
from memo_planner.expected import Prediction
from memo_planner.profile import Profile
from memo_planner.setting import Setting

FORMAT = "memo-plan"
VERSION = 3


def inputs_hash(
    profile: Profile, tokens: int, limits: Limits, setting: Setting | None = None
) -> str:
    """sha256, hexadecimal, of what a plan is made from; without a setting, of the other three."""
    inputs = {"profile": asdict(profile), "tokens": tokens, "limits": asdict(limits)}
    if setting is not None:
        inputs["setting"] = asdict(setting)
    text = json.dumps(inputs, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The planner's answer. `save` and `load` keep it as JSON (docs/formats.md).

    `setting` is the job around the step where machine and model are known by name; None where
    the profile was measured.

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
        document = read_document(Path(path))
        for key, value in (("format", FORMAT), ("version", VERSION)):
            if document.get(key) != value or isinstance(document.get(key), bool):
                raise PlanFileError(f"{path}: {key} is {document.get(key)!r}, expected {value!r}")
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
    from memo_planner.prediction import predict

    expected = asdict(replace(predict(plan.profile, plan.policy), binds=plan.prediction.binds))
    for name, value in asdict(plan.prediction).items():
        wanted = expected[name]
        same = math.isclose(value, wanted) if isinstance(wanted, float) else value == wanted
        if not same:
            raise InvalidInput(f"prediction.{name} is {value!r}, its policy gives {wanted!r}")
