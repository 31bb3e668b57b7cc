"""A caller of the gateway, as a request sees it, and the limits it may have."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Limits:
    """What a caller may use at most; None is no limit. Minutes, days and months are those of UTC; money is in nano-USD
    (1e-9 USD)."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    nano_usd_per_day: int | None = None
    nano_usd_per_month: int | None = None


NO_LIMITS = Limits()


@dataclass(frozen=True)
class Caller:
    """Who a key belongs to. `allowed_models` None: any. `limited` and `has_budget` are worked out once, because every
    request asks: whether it has any limit at all, and whether one of them is money."""

    id: str
    name: str
    team: str | None = None
    project: str | None = None
    admin: bool = False
    allowed_models: frozenset[str] | None = None
    limits: Limits = NO_LIMITS
    limited: bool = field(init=False)
    has_budget: bool = field(init=False)

    def __post_init__(self) -> None:
        money = (self.limits.nano_usd_per_day, self.limits.nano_usd_per_month)
        rates = (self.limits.requests_per_minute, self.limits.tokens_per_minute)
        object.__setattr__(self, "has_budget", any(limit is not None for limit in money))
        object.__setattr__(self, "limited", self.has_budget or any(limit is not None for limit in rates))

    def may_use(self, *names: str | None) -> bool:
        """Whether a model may be used that is known by these names (a model id, a job_id, a network arch)."""
        return self.allowed_models is None or any(name in self.allowed_models for name in names)
