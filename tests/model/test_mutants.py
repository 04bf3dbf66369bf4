"""The exploration notices what is wrong: each mutant of a rule is caught."""

from __future__ import annotations

import pytest
from exploration import explore
from mutants import MUTANTS
from world import Violation


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant = MUTANTS[name]
    mutant.make(monkeypatch)

    with pytest.raises(Violation):
        explore(mutant.setup)


def test_where_mutants_are_caught_nothing_is_wrong_without_them() -> None:
    for setup in {mutant.setup for mutant in MUTANTS.values()}:
        explore(setup)
