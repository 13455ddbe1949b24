"""What every answer is made of."""

from typing import Annotated

from msgspec import Meta

from netsonde.model import MINTED_ID_MAX

Id = Annotated[int, Meta(ge=1, le=MINTED_ID_MAX)]
Count = Annotated[int, Meta(ge=0)]
Instant = Annotated[str, Meta(extra_json_schema={"format": "date-time"})]
Cursor = str | None  # null: there is no more
