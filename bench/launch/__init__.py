"""Starting stages: walking a plan, launching processes, devices, signals."""
