"""The numbers of a report, computed from run folders."""
