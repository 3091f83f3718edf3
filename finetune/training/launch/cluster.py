"""What Lightning asks about the processes of a job, answered by `ranks`: it neither starts them nor guesses who did."""

from lightning.pytorch.plugins.environments import ClusterEnvironment

from finetune.training.launch.ranks import Place


class Cluster(ClusterEnvironment):
    """Lightning's view of `place`, the same whoever started it; `ranks.launched` makes the process group."""

    def __init__(self, place: Place):
        super().__init__()
        self.place = place

    @property
    def creates_processes_externally(self) -> bool:
        return True

    @property
    def main_address(self) -> str:
        return "127.0.0.1"  # never used: the process group exists before Lightning asks

    @property
    def main_port(self) -> int:
        return 0

    @staticmethod
    def detect() -> bool:
        return False

    def world_size(self) -> int:
        return self.place.size

    def set_world_size(self, size: int) -> None:
        pass

    def global_rank(self) -> int:
        return self.place.rank

    def set_global_rank(self, rank: int) -> None:
        pass

    def local_rank(self) -> int:
        return self.place.local

    def node_rank(self) -> int:
        return self.place.node
