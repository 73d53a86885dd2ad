"""The planner: one budget in, the best verified plan out.

`space` says what may be decided, `assembly` what every choice costs, `search` solves, builds, verifies, corrects the
tables and solves again, and `choose` hands the best verified plans to the rest of the compile. The optimisation problem
itself, without any model, is `greencc.planner`.
"""
