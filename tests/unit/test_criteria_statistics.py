"""What compares windows, against loops over them with numpy's correlations, eigenvalues, determinants."""

import numpy as np
import pytest
import torch

from shadow.criteria.statistics import STATISTICS

TINY = 1e-5
WINDOWS, TOKENS, UNITS = 7, 5, 6


def draw(windows=WINDOWS, tokens=TOKENS, units=UNITS, width=1, seed=0):
    """-> float32 [N, K, U, D], with something in common between windows, so that they correlate."""
    of = torch.Generator().manual_seed(seed)
    common = torch.randn(1, tokens, units, width, generator=of)
    return common + torch.randn(windows, tokens, units, width, generator=of)


def rows_of(seen, unit):
    """-> float64 [N, K * D]: what each window shows of a unit."""
    return np.array([[float(x) for token in window[:, unit] for x in token] for window in seen])


def correlations(rows):
    """-> [N, N]; a row that does not vary correlates with none, where numpy has nan."""
    found = np.zeros((len(rows), len(rows)))
    varies = [i for i, row in enumerate(rows) if len(set(row)) > 1]
    for i in varies:
        for j in varies:
            found[i, j] = np.corrcoef(rows[i], rows[j])[0, 1]
    return found


def nwot(rows, classes):
    kernel = np.eye(len(rows))
    for i, one in enumerate(rows):
        for j, other in enumerate(rows):
            kernel[i, j] += sum((x > 0) == (y > 0) for x, y in zip(one, other))
    return np.linalg.slogdet(kernel)[1]


def jacov(rows, classes):
    # ascending; those that are 0 because windows outnumber the gradients in each are left out
    values = np.linalg.eigvalsh(correlations(rows))[-min(len(rows), len(rows[0])) :]
    return -sum(np.log(v + TINY) + 1 / (v + TINY) for v in values)


def epenas(rows, classes):
    sums = []
    for name in sorted(set(classes)):
        members = np.array([row for row, own in zip(rows, classes) if own == name])
        if len(members) > 1:
            sums.append(sum(np.log(abs(r) + TINY) for r in correlations(members).flatten()))
    return sum(abs(one - other) for one in sums for other in sums) if len(sums) > 1 else 0.0


LOOPS = {"nwot": nwot, "jacov": jacov, "epenas": epenas}
CLASSES = [3, 9, 3, 9, 9, 3, 5]  # of the last there is one window


def by_hand(name, seen, classes):
    return torch.tensor([LOOPS[name](rows_of(seen, unit), classes) for unit in range(seen.shape[2])])


def of(name, seen, classes=CLASSES):
    return STATISTICS[name].of(seen, torch.tensor(classes))


def assert_near(got, expected, absolute=1e-6):
    # computed in float64 and given as float32, 6e-8 of itself; numpy's correlations differ by 1e-16, of which
    # the 1 / 1e-5 of a zero eigenvalue makes 1e-6
    torch.testing.assert_close(got.double(), expected.double(), rtol=1e-6, atol=absolute)


def test_every_statistic_has_a_test():
    assert LOOPS.keys() == STATISTICS.keys()


@pytest.mark.parametrize("name", LOOPS)
@pytest.mark.parametrize("width", [1, 8], ids=["neurons", "heads"])
def test_scores_equal_the_formula_computed_in_loops_over_windows(name, width):
    seen = draw(width=width, tokens=9)
    got = of(name, seen)
    assert got.shape == (UNITS,)
    assert got.dtype == torch.float32
    assert got.unique().numel() > UNITS // 2
    assert_near(got, by_hand(name, seen, CLASSES))


@pytest.mark.parametrize("name", LOOPS)
def test_there_may_be_more_windows_than_gradients_in_each(name):
    """Up to a number for all units: jacov leaves out eigenvalues that are 0 in every unit, the loop not."""
    seen, classes = draw(windows=40, tokens=6), [i % 3 for i in range(40)]
    got, expected = of(name, seen, classes).double(), by_hand(name, seen, classes)
    # one 0 is left, as rows are centred: float32 has steps of 0.008 at its 1e5
    assert_near(got - got.mean(), expected - expected.mean(), absolute=1e-2)


@pytest.mark.parametrize("name", LOOPS)
def test_a_unit_that_is_silent_everywhere_has_a_finite_score_and_touches_no_other(name):
    seen = draw()
    expected = of(name, seen)
    seen[:, :, 2] = 0
    got = of(name, seen)
    assert torch.isfinite(got).all()
    assert_near(got, by_hand(name, seen, CLASSES))
    others = [unit for unit in range(UNITS) if unit != 2]
    # matrices of several units go through one call: rounding
    assert_near(got[others], expected[others])


@pytest.mark.parametrize("constant", [0.0, 0.1, -3.3])
@pytest.mark.parametrize("name", LOOPS)
def test_windows_at_which_a_unit_does_not_vary_are_not_compared(name, constant):
    """0.1 is not a number of binary digits: its mean must still be itself."""
    seen = draw()
    seen[[1, 4], :, 3] = constant
    assert_near(of(name, seen), by_hand(name, seen, CLASSES))


@pytest.mark.parametrize("name", LOOPS)
def test_windows_of_equal_content_are_told_apart_least(name):
    """Equal windows: the determinant and the eigenvalues of a matrix of one number."""
    seen = draw()
    same = seen.clone()
    same[:, :, 1] = seen[:1, :, 1]
    got = of(name, same)
    assert_near(got, by_hand(name, same, CLASSES))
    if name == "nwot":
        assert got[1] == got.min()
        # K = 5 everywhere: det(K + I) = 1 + 7 * 5
        assert float(got[1]) == pytest.approx(np.log(1 + WINDOWS * TOKENS), rel=1e-6)
    if name == "jacov":
        assert got[1] == got.min()


@pytest.mark.parametrize("name", LOOPS)
def test_the_order_of_the_windows_does_not_matter(name):
    seen, order = draw(), [4, 0, 6, 2, 5, 1, 3]
    assert_near(of(name, seen[order], [CLASSES[i] for i in order]), of(name, seen))


@pytest.mark.parametrize("name", ["jacov", "epenas"])
def test_the_size_of_a_windows_gradients_does_not_matter(name):
    """Correlations are of the direction alone; a power of two changes no digit."""
    seen = draw()
    scaled = seen * torch.tensor([2.0**-20, 1, 2, 4, 2.0**20, 1, 0.5])[:, None, None, None]
    assert_near(of(name, scaled), of(name, seen))


@pytest.mark.parametrize("classes", [[1] * 7, [0, 1, 2, 3, 4, 5, 6], [1, 1, 2, 3, 4, 5, 6]])
def test_epenas_is_zero_where_fewer_than_two_classes_have_two_windows(classes):
    assert torch.equal(of("epenas", draw(), classes), torch.zeros(UNITS))


def test_epenas_is_zero_where_the_classes_say_the_same():
    half = draw(windows=3)
    assert not of("epenas", torch.cat([half, half]), [1, 1, 1, 2, 2, 2]).abs().gt(1e-9).any()


def test_a_class_of_one_window_is_left_out():
    seen = draw()
    assert_near(of("epenas", seen), of("epenas", seen[:6], CLASSES[:6]))


@pytest.mark.parametrize("name", ["nwot", "jacov"])
def test_classes_matter_to_epenas_alone(name):
    seen = draw()
    assert torch.equal(of(name, seen), of(name, seen, [0] * 7))


@pytest.mark.parametrize("name", LOOPS)
def test_the_same_windows_have_the_same_scores_bit_for_bit(name):
    assert torch.equal(of(name, draw(width=8)), of(name, draw(width=8)))


def test_a_unit_that_tells_windows_apart_ranks_above_one_that_does_not():
    """Of two units, one fires at random and one always; one's gradients differ and the other's are alike."""
    seen = draw(tokens=50, units=2)
    seen[:, :, 1] = seen[:1, :, 1] + 0.01 * seen[:, :, 1]
    for name in ("nwot", "jacov"):
        first, second = of(name, seen)
        assert first > second
