"""Configurations that a control plane hands out, and what became of them."""

from typing import Annotated, Any

from msgspec import Meta, Struct

from netsonde.model.values import MINTED_ID_MAX

ShortText = Annotated[str, Meta(max_length=64)]


class ConfigStatus(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What an agent has made of the last signed configuration it was given.

    `applied` is the revision in force, `revision` the one that `status` (ack or nack) is about; a
    nack has its `reason` and what it says to people. `stale`: the one in force has expired.
    `clamped` names values above this host's ceiling, and what became of them.
    """

    applied: Annotated[int, Meta(ge=0, le=MINTED_ID_MAX)] | None = None
    status: Annotated[str, Meta(max_length=16)] | None = None
    revision: Annotated[int, Meta(ge=0, le=MINTED_ID_MAX)] | None = None
    reason: ShortText | None = None
    error: Annotated[str, Meta(max_length=1024)] | None = None
    stale: bool = False
    clamped: Annotated[
        tuple[
            Annotated[dict[ShortText, Annotated[str, Meta(max_length=256)]], Meta(max_length=8)],
            ...,
        ],
        Meta(max_length=64),
    ] = ()


class AgentConfigEnvelope(Struct, frozen=True, kw_only=True):
    """A configuration revision as an original control plane serves it; nobody verified it."""

    revision: str
    issued_at: str
    expires_at: str
    config: dict[str, Any]
    signature: str
