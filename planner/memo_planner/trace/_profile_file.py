"""A profile in a file of its own: what was measured or assumed, of what, with hashes."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

from memo_planner.checks import check_fields, check_int, check_text
from memo_planner.codec import decode, encode, hash_of, read_document, write_document
from memo_planner.errors import InvalidInput, PlanFileError
from memo_planner.profile import Profile

FORMAT = "memo-profile"
VERSION = 6
KINDS = ("measured", "fake")


@dataclass(frozen=True, kw_only=True)
class BlockFlops:
    """Floating-point operations of one block, a multiply-add counted as two.

    Of one token (over the whole batch) in pre and post; of attention per token squared, half of the
    full square where it is causal. Backward does not count a recomputation, but for what attention
    kernels always do again.
    """

    pre_flops_per_token: float
    post_flops_per_token: float
    attention_flops_per_token2: float
    pre_backward_flops_per_token: float
    post_backward_flops_per_token: float
    attention_backward_flops_per_token2: float

    def __post_init__(self) -> None:
        check_fields(self, tuple(f.name for f in fields(self)))

    def step_flops(self, tokens: int, num_blocks: int) -> float:
        """FLOPs of all blocks, forward and backward, for a sequence of `tokens`."""
        tilewise = self.pre_flops_per_token + self.post_flops_per_token
        tilewise += self.pre_backward_flops_per_token + self.post_backward_flops_per_token
        attention = self.attention_flops_per_token2 + self.attention_backward_flops_per_token2
        return num_blocks * (tilewise * tokens + attention * tokens**2)


@dataclass(frozen=True, kw_only=True)
class LinkRates:
    """Bytes per second of one rank's copies, 1 or more, under three loads.

    alone: one direction, this rank only. both: both directions at once, this rank only.
    all_ranks: both directions at once, all `num_ranks` ranks of the node at the same time.
    """

    num_ranks: int
    d2h_alone_bytes_per_s: float
    h2d_alone_bytes_per_s: float
    d2h_both_bytes_per_s: float
    h2d_both_bytes_per_s: float
    d2h_all_ranks_bytes_per_s: float
    h2d_all_ranks_bytes_per_s: float

    def __post_init__(self) -> None:
        check_int("LinkRates.num_ranks", self.num_ranks, 1, 2**20)
        rates = tuple(f.name for f in fields(self) if f.name.endswith("_bytes_per_s"))
        check_fields(self, rates, least=1.0)


@dataclass(frozen=True, kw_only=True)
class ProfileSource:
    """What a profile was made from.

    kind: `measured` on the device, or `fake`: bytes without arithmetic, seconds by `assumptions`.
    model_hash, device, batch: as in the profile. tokens: the longest sequence that was run.
    assumptions: speeds that were given, as text; "none" where everything was measured.
    """

    kind: str
    model_hash: str
    device: str
    batch: int
    tokens: int
    assumptions: str

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InvalidInput(f"ProfileSource.kind is {self.kind!r}; it must be one of {KINDS}")
        for name in ("model_hash", "device", "assumptions"):
            check_text(f"ProfileSource.{name}", getattr(self, name))
        check_int("ProfileSource.batch", self.batch, 1)
        check_int("ProfileSource.tokens", self.tokens, 1)


@dataclass(frozen=True, kw_only=True)
class ProfileFile:
    """A profile with its source; `save` and `load` keep it as JSON (docs/formats.md).

    flops, link_rates: None where they were not found out.
    inputs_hash: of `source`. profile_hash: of everything else; both sha256, hexadecimal.
    Raises: InvalidInput if the parts do not belong together.
    """

    version: int
    source: ProfileSource
    profile: Profile
    flops: BlockFlops | None
    link_rates: LinkRates | None
    inputs_hash: str
    profile_hash: str

    def __post_init__(self) -> None:
        check_int("ProfileFile.version", self.version, VERSION, VERSION)
        for name in ("model_hash", "device", "batch"):
            ours, theirs = getattr(self.source, name), getattr(self.profile, name)
            if ours != theirs:
                raise InvalidInput(f"{name} is {ours!r} in the source, {theirs!r} in the profile")
        hashes = {
            "inputs_hash": _hash(self.source),
            "profile_hash": _hash(self.profile, self.flops, self.link_rates),
        }
        for name, expected in hashes.items():
            if getattr(self, name) != expected:
                raise InvalidInput(
                    f"{name} is {getattr(self, name)!r}, what it is of gives {expected}"
                )

    @classmethod
    def of(
        cls,
        source: ProfileSource,
        profile: Profile,
        *,
        flops: BlockFlops | None = None,
        link_rates: LinkRates | None = None,
    ) -> ProfileFile:
        """A file of the current version with its hashes."""
        return cls(
            version=VERSION,
            source=source,
            profile=profile,
            flops=flops,
            link_rates=link_rates,
            inputs_hash=_hash(source),
            profile_hash=_hash(profile, flops, link_rates),
        )

    def save(self, path: str | Path) -> None:
        """Write the profile as JSON. Raises: OSError."""
        write_document(Path(path), {"format": FORMAT, **encode(self)})

    @classmethod
    def load(cls, path: str | Path) -> ProfileFile:
        """Read a profile and check it: version, fields, types, both hashes.

        Raises: PlanFileError naming the file and what is wrong.
        """
        document = read_document(Path(path), format=FORMAT, version=VERSION)
        del document["format"]
        try:
            return decode(cls, document, "profile file")
        except InvalidInput as error:
            raise PlanFileError(f"{path}: {error}") from error


def _hash(*parts: object) -> str:
    return hash_of([encode(part) for part in parts])
