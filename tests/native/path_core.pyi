from typing import Final, final

PROBE: Final[int]  # what is to be done next
LATER: Final[int]
WAIT: Final[int]
DONE: Final[int]
EXPIRED: Final[int]  # what an answer means
REACHED: Final[int]
REFUSED: Final[int]
WINDOW_HOPS: Final[int]
BURST_HOPS: Final[int]
BURST_GAP_NS: Final[int]
RETRY_MIN_NS: Final[int]
RETRY_RTTS: Final[int]
STOPS: Final[dict[int, str]]

@final
class PathCore:
    def __init__(
        self,
        *,
        first_ttl: int = 1,
        last_ttl: int = 30,
        attempts: int = 3,
        gap_limit: int = 5,
        timeout_ns: int = ...,
        interval_ns: int = 0,
        all_attempts: bool = False,
    ) -> None: ...
    def next(self, now_ns: int) -> tuple[int, int]: ...
    def send(self, ttl: int, now_ns: int) -> tuple[int, int]: ...  # attempt, patience in ns
    def refuse(self, ttl: int) -> None: ...
    def give_up(self, ttl: int) -> None: ...
    def answer(
        self, ttl: int, known: int, responder: bytes, rtt_ns: int, *, waiting: bool = True
    ) -> None: ...
    def cancel(self) -> None: ...
    @property
    def end_ttl(self) -> int: ...
    @property
    def stop(self) -> str: ...
    def attempts(self, ttl: int) -> int: ...
