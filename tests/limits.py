"""The one limit of every wait in the tests."""

HANG = 600
"""Seconds after which a wait has hung. On a busy machine all takes ten times as long and more: a shorter limit would
end tests that do not hang."""
