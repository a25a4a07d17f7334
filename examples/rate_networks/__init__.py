"""Three published rate networks on their tasks, one for each form of `rnn_ext.CTRNN`.

Each file has the network, what its authors compute (`loop`), their task (`draw_trials`) and their
loss. Equation, sizes and task are theirs; the initial weights are those of `CTRNN`.
"""

from . import multitask, nn_brain, psychrnn

__all__ = ["NETWORKS"]

NETWORKS = {
    "PsychRNN": psychrnn,
    "multitask": multitask,
    "nn-brain": nn_brain,
}
