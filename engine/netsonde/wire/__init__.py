"""The wire: bytes to model and back, limits, and the one place where ms become ns."""

from netsonde.wire.claims import (
    Claimed,
    RejectedLease,
    decode_claim,
    decode_extend,
    lease_deadline_ns,
    relative_ms,
)
from netsonde.wire.codec import DecodeError, decode, decode_answer, encode, fragment, parse
from netsonde.wire.envelopes import decode_error, error_body
from netsonde.wire.limits import (
    ADMIN_MAX_BYTES,
    BODY_MAX_BYTES,
    ITEM_MAX_BYTES,
    JSON_DEPTH_MAX,
    LEASE_IDS_PER_EXTEND_MAX,
    LEASES_PER_CLAIM_MAX,
    OBSERVATIONS_MAX,
    REPORT_ITEMS_MAX,
    REPORT_MAX_BYTES,
)
from netsonde.wire.reports import (
    ReportIn,
    ReportItem,
    classify,
    decode_report,
    encode_report,
    encode_report_item,
    encode_result,
    item_lease_id,
    merge_result,
    timed_item,
)
from netsonde.wire.specs import build_spec, convert_spec

__all__ = [
    "ADMIN_MAX_BYTES",
    "BODY_MAX_BYTES",
    "ITEM_MAX_BYTES",
    "JSON_DEPTH_MAX",
    "LEASES_PER_CLAIM_MAX",
    "LEASE_IDS_PER_EXTEND_MAX",
    "OBSERVATIONS_MAX",
    "REPORT_ITEMS_MAX",
    "REPORT_MAX_BYTES",
    "Claimed",
    "DecodeError",
    "RejectedLease",
    "ReportIn",
    "ReportItem",
    "build_spec",
    "classify",
    "convert_spec",
    "decode",
    "decode_answer",
    "decode_claim",
    "decode_error",
    "decode_extend",
    "decode_report",
    "encode",
    "encode_report",
    "encode_report_item",
    "encode_result",
    "error_body",
    "fragment",
    "item_lease_id",
    "lease_deadline_ns",
    "merge_result",
    "parse",
    "relative_ms",
    "timed_item",
]
