"""What a choice maximises: facility location in all its forms, graph cut, log-determinant, sums; `table` names them."""
