"""How a choice is made: lazy, sampled, threshold and partitioned greedy; `table` names them."""
