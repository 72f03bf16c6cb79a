"""Peak memory: of allocations whose size is known. No torch here: the new process loads this file."""

import pytest
from meta_step.memory import can_reset_peak, peak_growth

MIB = 2**20
NEAR = 2 * MIB
"""What an interpreter takes for itself meanwhile."""


def nothing_first(n_mib: int):
    """Return the call that takes `n_mib` and frees them again."""
    return lambda: len(b"x" * (n_mib * MIB))


def more_first(n_mib: int):
    """Take and free twice the memory before."""
    nothing_first(2 * n_mib)()
    return nothing_first(n_mib)


def in_two_parts(n_mib: int):
    """Return the call that holds half of it while it takes the other half."""
    return lambda: [b"x" * (n_mib * MIB // 2), b"y" * (n_mib * MIB // 2)]


@pytest.mark.parametrize("prepare", [nothing_first, in_two_parts])
def test_an_allocation_of_known_size_is_found_though_it_is_freed(prepare):
    assert abs(peak_growth(prepare, 64) - 64 * MIB) < NEAR


def test_a_higher_peak_before_the_call_hides_nothing():
    if not can_reset_peak():
        pytest.skip("the highest resident memory can't be set back here")
    assert abs(peak_growth(more_first, 64) - 64 * MIB) < NEAR


def test_a_call_that_takes_nothing_adds_next_to_nothing():
    assert peak_growth(nothing_first, 0) < NEAR
