"""From a study to a plan: every stage resolved, with its cost."""
