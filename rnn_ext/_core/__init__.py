"""Private: how a call of a module or a function reaches the kernels.

``call.py`` is the call as one value; ``dispatch.py`` chooses its route and runs it. The routes are
``node.py`` (the autograd node in C++), ``autograd.py`` (the same in Python), ``cuda.py``,
``composite.py`` and ``lookup.py``; ``derivatives.py`` and ``vectorize.py`` serve higher derivatives
and vmap. ``ops.py`` and ``flops.py`` register what torch asks of an op, ``cells/`` compiles a cell,
and ``torch_private.py`` holds every private name of torch.
"""
