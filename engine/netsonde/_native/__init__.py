"""Compiled leaves: sockets, packets and the deadline heap. They import nothing of ours."""
