"""What is signed: a new revision, or one that there is once more."""

from typing import Any

import pytest
from msgspec import structs

from netsonde.cli.signing import EXPIRES_MAX_MS, Wanted, new_envelope, signed_too
from netsonde.errors import ConfigError
from netsonde.remote_config import Scope, inspect
from support.configs import CONFIG, KEY, OTHER_KEY


@pytest.mark.parametrize(
    ("wanted", "scope"),
    [
        (Wanted(revision=3), Scope(all=True)),
        (Wanted(revision=3, labels=("site=ams",)), Scope(labels={"site": "ams"})),
        (Wanted(revision=3, agents=("7", "ams-1")), Scope(agents=(7, "ams-1"))),
    ],
)
def test_a_new_one_says_what_was_wanted(wanted: Wanted, scope: Scope) -> None:
    payload = inspect(new_envelope(CONFIG, wanted, [KEY]))
    assert (payload.revision, payload.scope) == (3, scope)
    assert (payload.expires_at - payload.issued_at).days == 90


@pytest.mark.parametrize(
    ("values", "wanted", "sentence"),
    [
        (CONFIG, Wanted(), "--revision is needed"),
        (CONFIG, Wanted(revision=1, expires_ms=0), "--expires must be more than 0"),
        (CONFIG, Wanted(revision=1, expires_ms=EXPIRES_MAX_MS + 1), "at most 3650d"),
        (CONFIG, Wanted(revision=1, labels=("a=b",), agents=("7",)), "without --label"),
        ({"kinds": 7}, Wanted(revision=1), "not a configuration's"),
        ({"resolvers": ["nowhere"]}, Wanted(revision=1), "is not an address"),
    ],
)
def test_nothing_is_signed_that_no_agent_takes(
    values: dict[str, Any], wanted: Wanted, sentence: str
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        new_envelope(values, wanted, [KEY])


def test_another_signature_leaves_the_payload_and_each_key_signs_once() -> None:
    first = new_envelope(CONFIG, Wanted(revision=1), [KEY])
    both = signed_too(first, Wanted(), [OTHER_KEY])
    again = signed_too(both, Wanted(), [KEY])
    assert first.payload == both.payload == again.payload
    ids = {KEY.public.keyid, OTHER_KEY.public.keyid}
    assert {one.keyid for one in both.signatures} == {one.keyid for one in again.signatures} == ids
    assert len(again.signatures) == 2


@pytest.mark.parametrize("name", ["revision", "expires_ms", "labels", "agents"])
def test_an_envelope_is_signed_as_it_is(name: str) -> None:
    sealed = new_envelope(CONFIG, Wanted(revision=1), [KEY])
    value: Any = ("a=b",) if name in {"labels", "agents"} else 2
    with pytest.raises(ConfigError, match="an envelope is signed as it is"):
        signed_too(sealed, Wanted(**{name: value}), [OTHER_KEY])
    with pytest.raises(ConfigError):
        signed_too(structs.replace(sealed, payload="?"), Wanted(), [OTHER_KEY])
