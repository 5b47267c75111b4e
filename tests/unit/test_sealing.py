"""Sealed secrets open for their purpose only, and stay readable while keys are rotated."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import ConfigurationError
from models.identity.sealing import Sealer, Unsealable, sealing_keys

OLD, NEW = bytes(range(32)), bytes(range(32, 64))
PURPOSE = "callback_endpoints.secret/1"


@given(st.text())
def test_sealed_secret_opens_again(secret: str) -> None:
    sealer = Sealer({"a": OLD})

    assert sealer.open(sealer.seal(secret, PURPOSE), PURPOSE) == secret


def test_same_secret_is_sealed_differently_each_time() -> None:
    sealer = Sealer({"a": OLD})

    assert sealer.seal("whsec", PURPOSE) != sealer.seal("whsec", PURPOSE)


def test_sealed_text_does_not_open_in_another_row() -> None:
    sealer = Sealer({"a": OLD})

    with pytest.raises(Unsealable):
        sealer.open(sealer.seal("whsec", PURPOSE), "callback_endpoints.secret/2")


@given(st.integers(0, 200), st.integers(1, 255))
def test_changed_text_does_not_open(place: int, change: int) -> None:
    sealer = Sealer({"a": OLD})
    head, _, text = sealer.seal("whsec", PURPOSE).rpartition(".")
    raw = bytearray(base64.urlsafe_b64decode(text))
    raw[place % len(raw)] ^= change

    with pytest.raises(Unsealable):
        sealer.open(f"{head}.{base64.urlsafe_b64encode(raw).decode()}", PURPOSE)


def test_rotated_key_still_opens_what_it_sealed_and_asks_to_be_sealed_anew() -> None:
    sealed = Sealer({"a": OLD}).seal("whsec", PURPOSE)
    rotated = Sealer({"b": NEW, "a": OLD})

    assert rotated.open(sealed, PURPOSE) == "whsec"
    assert not rotated.is_current(sealed)
    assert rotated.is_current(rotated.seal("whsec", PURPOSE))


@pytest.mark.parametrize("sealed", ["", "whsec_plain", "v1.gone.AAAA", "v2.a.AAAA", "v1.a.", "v1.a.!!"])
def test_foreign_text_is_refused(sealed: str) -> None:
    with pytest.raises(Unsealable):
        Sealer({"a": OLD}).open(sealed, PURPOSE)


def test_setting_lists_keys_in_order() -> None:
    text = ", ".join(f"{key_id}:{base64.b64encode(key).decode()}" for key_id, key in (("b", NEW), ("a", OLD)))

    assert list(sealing_keys(text).items()) == [("b", NEW), ("a", OLD)]


@pytest.mark.parametrize("text", ["a", "a:", "a:AAAA", "a b:" + "A" * 43 + "=", ":" + "A" * 43 + "="])
def test_wrong_setting_is_told_without_the_key(text: str) -> None:
    with pytest.raises(ConfigurationError, match="WAYBILL_SEALING_KEYS") as caught:
        sealing_keys(text)

    assert "AAAA" not in str(caught.value)
