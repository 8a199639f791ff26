"""The report: what compiling a model did and what a generation cost, as one page. `forerun.reporting` makes one."""
