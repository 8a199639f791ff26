"""Plans attention/FFN disaggregation for hardware that need not be here, from shapes and rooflines alone.

`shape.py` counts what a model computes and reads, `hardware.py` describes devices, `times.py` and `measured.py` give
the seconds of a part, `pipeline.py` those of a step, `search.py` finds the best placement, `report.py` words it.
`floor.py` is the lower bound on cost of the Step-3 paper (arXiv 2507.19427).
"""
