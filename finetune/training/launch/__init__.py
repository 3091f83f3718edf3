"""Launch: the processes of a run, started by this program, torchrun or SLURM."""
