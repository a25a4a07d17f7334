"""Models around torch's recurrent layers and cells, in plain PyTorch.

Four are small and use `nn.RNN` and `nn.RNNCell`. Four follow public projects that use `nn.GRU`,
`nn.LSTM` and `nn.GRUCell`, and have their sizes.

Each file has the model, data made up for it, and three functions:

* `build()` returns the model;
* `build_optimizer(model)` returns the optimizer that suits it;
* `train(model, optimizer)` trains without end: each `next()` is one step and returns its loss.
"""

from . import (
    language_model,
    policy,
    reviews,
    sentiment,
    tagger,
    text_recognition,
    translation,
    world_model,
)

__all__ = ["GATED", "MODELS"]

MODELS = {
    "sentiment classifier": sentiment,
    "sequence tagger": tagger,
    "word language model": language_model,
    "actor-critic policy": policy,
    "reviews, LSTM": reviews,
    "translation, GRU": translation,
    "text in images, LSTM": text_recognition,
    "world model, GRUCell": world_model,
}
GATED = list(MODELS)[4:]
