"""Parts of benchmarks/h_tuning_memory.py."""
