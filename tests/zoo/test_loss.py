"""The loss in chunks is the plain one for every model of the zoo, with its gradients."""

from __future__ import annotations

from tests.zoo.loss import iter_comparisons

PLAIN = {"m2m100", "blenderbot"}
"""Models that shift their labels themselves, and compute a loss of their own of them."""
TRANSFORMED = {"gemma2", "cohere", "granite", "nanochat", "recurrent-gemma"}


def test_the_loss_in_chunks_equals_the_plain_one_for_every_model_of_the_zoo():
    comparisons = dict(iter_comparisons())
    assert len(comparisons) > 100
    assert [name for name, one in comparisons.items() if not one.is_equal] == []
    assert {name for name, one in comparisons.items() if not one.choice.is_chunked} == PLAIN
    transforms = {name: one.choice.transform for name, one in comparisons.items()}
    named = {name for name, transform in transforms.items() if not transform.is_identity}
    assert TRANSFORMED - {"granite"} <= named
    assert transforms["gemma2"].cap == 30.0 and transforms["cohere"].scale == 0.0625
