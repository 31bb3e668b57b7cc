"""Keys: their form, what is stored of them, and whose they are."""

from __future__ import annotations

import hashlib
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_service.callers import directory, keys, money, windows
from inference_service.callers.caller import Caller, Limits
from inference_service.callers.directory import Copy, Directory


def directory_of(key: keys.NewKey, caller: Caller, expires_at: float | None = None, now: float = 0.0) -> Directory:
    made = Directory(lambda: now)
    made.replace(Copy(1, {caller.id: caller}, {key.key_id.encode(): (bytes.fromhex(key.digest), caller, expires_at)}))
    return made


def test_a_key_is_its_callers_and_no_other_is() -> None:
    key, other = keys.make(), keys.make()
    caller = Caller("c1", "web")
    known = directory_of(key, caller)
    assert known.authenticate(key.api_key.encode()) is caller
    assert known.authenticate(other.api_key.encode()) is None


@given(st.binary(max_size=80))
def test_what_is_no_key_is_nobodys(sent: bytes) -> None:
    assert directory_of(keys.make(), Caller("c1", "web")).authenticate(sent) is None


@given(st.integers(0, keys.LENGTH - 1), st.integers(1, 255))
def test_one_wrong_character_anywhere_is_refused(position: int, change: int) -> None:
    key = keys.make()
    sent = bytearray(key.api_key.encode())
    sent[position] ^= change
    assert directory_of(key, Caller("c1", "web")).authenticate(bytes(sent)) is None


def test_an_unknown_key_is_hashed_and_compared_like_a_known_one(monkeypatch: pytest.MonkeyPatch) -> None:
    key, stranger = keys.make(), keys.make()
    wrong = f"{key.api_key[:-1]}{'a' if key.api_key[-1] != 'a' else 'b'}"
    hashed: list[bytes] = []
    compared: list[tuple[int, int]] = []
    known = directory_of(key, Caller("c1", "web"))

    def sha256(data: bytes) -> object:
        hashed.append(data)
        return hashlib.sha256(data)

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((len(one), len(other)))
        return one == other

    monkeypatch.setattr(directory, "sha256", sha256)
    monkeypatch.setattr("hmac.compare_digest", compare)
    for sent in (wrong, stranger.api_key):
        assert known.authenticate(sent.encode()) is None
    assert hashed == [wrong.encode(), stranger.api_key.encode()]
    assert compared == [(32, 32), (32, 32)]


def test_a_replaced_key_works_until_its_time_is_up() -> None:
    key = keys.make()
    caller = Caller("c1", "web")
    assert directory_of(key, caller, expires_at=100.0, now=99.9).authenticate(key.api_key.encode()) is caller
    assert directory_of(key, caller, expires_at=100.0, now=100.0).authenticate(key.api_key.encode()) is None


def test_no_representation_holds_a_key() -> None:
    key = keys.make()
    secret = key.api_key.rsplit("-", 1)[1]
    assert secret not in repr(key)
    assert secret not in repr(vars(directory_of(key, Caller("c1", "web"))))
    assert keys.is_well_formed(key.api_key.encode())
    assert len(key.api_key) == keys.LENGTH


@pytest.mark.parametrize(
    "sent", [b"", b"tao-", b"sk-ant-api03-xyz", b"tao-abcdefgh-" + b"x" * 42 + b"\n", b"x" * 10_000]
)
def test_foreign_keys_are_not_well_formed(sent: bytes) -> None:
    assert not keys.is_well_formed(sent)


def test_a_caller_knows_whether_it_is_limited() -> None:
    assert not Caller("c1", "web").limited
    assert Caller("c1", "web", limits=Limits(requests_per_minute=1)).limited
    assert not Caller("c1", "web", limits=Limits(tokens_per_minute=1)).has_budget
    budget = Caller("c1", "web", limits=Limits(nano_usd_per_month=0))
    assert budget.limited
    assert budget.has_budget


def test_a_model_is_allowed_by_any_of_its_names() -> None:
    caller = Caller("c1", "web", allowed_models=frozenset({"smollm2"}))
    assert caller.may_use("some job", "smollm2", None)
    assert not caller.may_use("claude-sonnet-5", "claude", None)
    assert Caller("c1", "web").may_use("anything")


@given(st.decimals(min_value=0, max_value=10**9, places=15))
def test_costs_are_rounded_up_to_nano_usd_and_never_down(cost: Decimal) -> None:
    nano = money.nano_usd(cost)
    assert cost <= Decimal(nano) / money.PER_USD < cost + Decimal("1e-9")


@given(st.integers(0, 10**18))
def test_money_is_shown_exactly(nano: int) -> None:
    shown = money.as_usd(nano)
    assert Decimal(shown) * money.PER_USD == nano
    assert "E" not in shown
    assert shown == "0" or not shown.endswith((".", "00")) or "." not in shown


@given(st.floats(0, 4e9), st.sampled_from(("minute", "day", "month")))
def test_each_moment_is_in_one_window_and_windows_follow_each_other(at: float, window: str) -> None:
    start = windows.start_of(window, at)
    end = windows.end_of(window, start)
    assert start <= at < end
    assert windows.start_of(window, start) == start
    assert windows.start_of(window, end) == end
    assert windows.start_of(window, end - 0.001) == start
