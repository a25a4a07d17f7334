"""Four small models as people write them around `nn.RNN` and `nn.RNNCell`, in plain PyTorch.

Each file has the model, data made up for it, and three functions:

* `build()` returns the model;
* `build_optimizer(model)` returns the optimizer that suits it;
* `train(model, optimizer)` trains without end: each `next()` is one step and returns its loss.
"""

from . import language_model, policy, sentiment, tagger

__all__ = ["MODELS"]

MODELS = {
    "sentiment classifier": sentiment,
    "sequence tagger": tagger,
    "word language model": language_model,
    "actor-critic policy": policy,
}
