"""Pure functions made fast: recorded once as plain lists of operations, rewritten, cut in two, checked, and compiled.

Nothing here knows what is distilled. `programs` records and runs, `rewrites` and `partition` change the recorded list, `liveness` tells
its peak memory from shapes, and `agreement` says when two results are the same.
"""
