"""What to say when a service fails a request: the platform's word on it and the last lines of its log (seed 6.3).

Getting either may fail as well; that never hides the fault itself.
"""

from __future__ import annotations

from dataclasses import dataclass

from inference_service import readiness
from inference_service.contracts import Driver, PlatformStatus, ServiceEntry, State
from inference_service.errors import ToolError


@dataclass(frozen=True)
class Service:
    """One service, and the driver that can tell more of it."""

    entry: ServiceEntry
    driver: Driver

    def status(self) -> PlatformStatus:
        """Its state on its platform, UNKNOWN where that cannot be found out."""
        try:
            return self.driver.status(self.entry)
        except Exception as error:
            return PlatformStatus(State.UNKNOWN, str(error))

    def fault(self, type: str, message: str, fix: str = "") -> ToolError:
        """The error with the log's tail. A service that has died in the meantime is what the error says instead."""
        status = self.status()
        if status.dead:
            return readiness.died(self.entry, self.driver, PlatformStatus(status.state, f"{status.reason}; {message}"))
        look = f"see its log: service_logs.py --job-id {self.entry.job_id}"
        return ToolError(type, message, f"{look}; {fix}" if fix else look, log_tail=self._log_tail())

    def _log_tail(self) -> list[str]:
        try:
            return readiness.log_tail(self.entry, self.driver)
        except Exception:
            return []
