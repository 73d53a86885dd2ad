"""The plan as an optimisation problem: budgets, units and options, the exact solver, the Pareto front."""
