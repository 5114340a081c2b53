"""Whether transfer helped: arms, label budgets, seeds, intervals."""
