"""The runtime type checker of the test-suite: beartype, with int admitted where float is expected (PEP 484)."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
