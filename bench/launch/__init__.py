"""Starting stages: scheduling a plan, launching processes, devices, signals."""
