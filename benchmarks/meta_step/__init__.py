"""The parts of benchmarks/meta_engine.py: what is run, its arithmetic, its memory, how it is shown."""
