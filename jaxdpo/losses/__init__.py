"""Preference losses, chosen by name: pure functions of completion log-probs, one loss a pair.

`table.py` lists the losses with what each reads; `against_reference.py`, `coupled.py` and
`without_reference.py` hold their formulas, `config.py` is the configuration, and `mixture.py` puts
together what a run minimises.
"""

from jaxdpo.losses.config import LossConfig

__all__ = ["LossConfig"]
