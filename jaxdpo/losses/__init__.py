"""Preference losses, chosen by name: pure functions of completion log-probs, one loss a pair.

`config.py` says which there are and which options each reads, `against_reference.py` and
`without_reference.py` hold their formulas, `mixture.py` puts together what a run minimises.
"""

from jaxdpo.losses.config import LossConfig

__all__ = ["LossConfig"]
