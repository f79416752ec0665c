"""DeepSpeed ZeRO: the strategy, its precision, its checkpoints."""
