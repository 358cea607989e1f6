"""Two processes that share a model's weights find in it what one finds that has them all."""

import pytest
import sharing
import torch
from torch.multiprocessing import spawn

pytestmark = [pytest.mark.slow, pytest.mark.parametrize("family", sharing.MODELS)]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Of each process."""
    folder = tmp_path_factory.mktemp("sharing")
    spawn(sharing.find, (folder,), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def assert_same(one, other):
    assert one.keys() == other.keys()
    for key in one:
        assert torch.equal(one[key], other[key]), key


def test_scores_of_each_processs_own_windows_are_bit_for_bit_those_of_the_whole_model(found, family):
    for of_process in found:
        assert_same(*of_process[family]["same"]["scores"])
        assert_same(*of_process[family]["same"]["forward"])
    zero, one = (of_process[family]["same"]["scores"][0] for of_process in found)
    assert not torch.equal(zero["plainact", 1, "head"], one["plainact", 1, "head"])  # else both had the same


def test_weights_are_read_whole(found, family):
    for of_process in found:
        of_model = of_process[family]["same"]
        assert of_model["weights"][0] == of_model["weights"][1]
        assert_same(*of_model["norms"])


def test_a_process_holds_half_of_the_model_before_and_after_every_pass(found, family):
    for of_process in found:
        whole, *shared = of_process[family]["room"]
        assert len(shared) == 3
        assert max(shared) < 0.52 * whole, of_process[family]["room"]


def test_a_loss_scale_that_overflows_in_one_process_gives_way_in_both(found, family):
    for rank, of_process in enumerate(found):
        of_model = of_process[family]["overflow"]
        assert of_model["passes apart"][0] != of_model["passes apart"][1]
        assert of_model["passes"] == max(of_model["passes apart"]), rank
        assert_same(*of_model["scores"])
