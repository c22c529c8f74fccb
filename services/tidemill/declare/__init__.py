"""What an ML engineer writes: one Python file that declares a pipeline. Each declaration checks itself."""
