"""Which networks measures of worth choose."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.importance import COSTS, NEAR, choose
from src.arch.cost_table import arithmetic_table
from src.arch.space import SKIP, load_space
from src.search.indicators import missing_indicators


@pytest.mark.parametrize("cost", COSTS)
def test_the_network_of_most_worth_at_a_cost_is_chosen(cost):
    space = load_space("nas_bench_macro")
    table = arithmetic_table(space, "macs", 10)
    worth = np.zeros(missing_indicators(space).shape)
    worth[1, 2], worth[7, 2] = 2.0, -1.0  # layer 1 should stay, layer 7 go, nothing else matters
    decisions = choose(space, table, worth, cost)
    assert decisions[1] != SKIP and decisions[7] == SKIP
    assert abs(table.total(decisions) / cost - 1) <= NEAR

    worth[1, 0] = 10.0  # that layer's larger choice counts, but not where the layer is skipped
    assert choose(space, table, worth, cost)[1] == "K5E6"
    worth[1, 2] = -20.0
    assert choose(space, table, worth, cost)[1] == SKIP
