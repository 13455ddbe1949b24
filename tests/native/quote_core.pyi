from typing import NamedTuple

OK: int
SHORT: int
FOREIGN: int
TRUSTED: int
BAD_VERSION: int
BAD_CHECKSUM: int
BAD_LENGTH: int

class ProbeQuote(NamedTuple):
    status: int
    version: int
    protocol: int
    ttl: int
    tos: int
    is_cut: bool
    ip_ident: int
    flow_label: int
    source: bytes
    destination: bytes
    ident: int
    sequence: int
    icmp_checksum: int
    source_port: int
    destination_port: int
    udp_length: int
    udp_checksum: int
    tcp_sequence: int
    payload: bytes
    mtu: int
    extension: bytes

def parse(version: int, message: bytes) -> ProbeQuote: ...
def find(version: int, message: bytes) -> bytes: ...
def check(structure: bytes) -> int: ...
def walk(structure: bytes) -> tuple[list[tuple[int, int, bytes]], bool]: ...
