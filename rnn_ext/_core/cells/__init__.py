"""Cells of a recurrence: from a Python function to the program that the kernels run.

``cell.py`` is the public object; ``trace.py`` runs the function and its derivative and builds a
graph (``graph.py``, ``operations.py``); ``saving.py`` decides what backward keeps; ``phases.py``
cuts the graph at the products of a step; ``lower.py`` turns it into a program (``program.py``);
``interpreter.py`` runs one in torch operations; ``text.py`` prints it.
"""
