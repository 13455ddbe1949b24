"""Listeners that neither many connections nor slow ones hold up."""
