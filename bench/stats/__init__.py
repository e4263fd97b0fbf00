"""Statistics: intervals, tests, the bootstrap, variance components, power."""
