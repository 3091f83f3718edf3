"""Lightning's environment plugin for a job's processes: `ranks` has started them, Lightning starts none."""

from lightning.pytorch.plugins.environments import ClusterEnvironment

from finetune.training.launch.ranks import Place


class Cluster(ClusterEnvironment):
    """Lightning's view of `place`, whatever started the process; `ranks.launch` makes the process group."""

    def __init__(self, place: Place):
        super().__init__()
        self.place = place

    @property
    def creates_processes_externally(self) -> bool:
        return True

    @property
    def main_address(self) -> str:
        return "127.0.0.1"  # not used: the process group exists already

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
