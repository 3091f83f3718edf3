"""Launch: the processes of a run, whoever started them."""
