"""Measurements beyond ``rnn-ext bench``; ``README.md`` has the method and the results.

``python -m benchmarks COMMAND``: ``__main__`` reads the flags and makes a ``run.Plan`` of ``cases``
(a grid, or the ``real`` calls). ``run`` measures one after the other: ``measure`` and ``call``
build modules and tensors (``draw``), compare the results and time the calls with the parts of
``rnn-ext bench``, and so does ``recurrences`` for a cell and its loop; ``memory``, ``start`` and
``gemm`` measure what their names say. ``limits`` (with ``probe``) measures what
``bounds`` follow from, ``gpu`` the same for a ``roofline``; ``peers`` are other runtimes.
``results`` keeps everything, and its JSON; ``report`` prints it, ``plot`` draws it.
"""
