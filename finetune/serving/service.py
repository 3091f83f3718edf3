"""A prediction from the bytes of an upload to its answer: decoding in a few threads, the network in one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from finetune.errors import one_of
from finetune.serving.answer import Answer, HeatMap, make_answer
from finetune.serving.batching import Batcher
from finetune.serving.card import model_card
from finetune.serving.images import decode_upload
from finetune.serving.limits import Admission, Limits
from finetune.serving.predictor import Predictor, preview
from finetune.serving.refusal import Refused, busy

METHOD = "grad_cam"
MAX_HEAT_MAPS = 4
"""Heat maps that may wait or be made at once; each takes the network as long as about three images."""


class Service:
    """What the routes call. It owns its threads: `close` ends them."""

    def __init__(
        self,
        predictor: Predictor,
        limits: Limits,
        *,
        max_batch: int = 16,
        max_wait: float = 0.005,
        decoders: int = 2,
        on_batch: Callable[[int, float], None] | None = None,
    ):
        self.predictor, self.limits = predictor, limits
        self.card = model_card(predictor)
        self.admission = Admission(limits)
        self.decoders = ThreadPoolExecutor(decoders, thread_name_prefix="decode")
        self.heat_maps = 0
        self.batcher = Batcher(
            predictor.predict,
            max_batch=max_batch,
            max_wait=max_wait,
            max_queue=limits.max_waiting + MAX_HEAT_MAPS,
            expected=lambda: self.admission.requests,
            on_batch=on_batch,
        )

    def close(self) -> None:
        """Finish what waits, then end the threads."""
        self.decoders.shutdown(wait=True, cancel_futures=True)
        self.batcher.close()

    def check_class(self, name: str | None) -> None:
        """Raise a Refused where the model has no class of that name."""
        classes = self.predictor.answers.classes
        if name is not None and name not in classes:
            raise Refused(400, str(one_of("heatmap", name[:100], classes)))

    async def answer(
        self, data: bytes, request_id: str, *, heat_map: str | None = None, with_preview: bool = False
    ) -> Answer:
        """The answer for an upload.

        Args:
            heat_map: the class to explain; None for no heat map.

        Raises:
            Refused: what is wrong with the upload, or the server is busy.
        """
        self.check_class(heat_map)
        loop = asyncio.get_running_loop()
        pixels, tensor, split, shown = await loop.run_in_executor(self.decoders, self._decode, data, with_preview)
        del data
        output = await asyncio.wrap_future(self.batcher.submit(tensor))
        heated = None if heat_map is None else await self._heat_map(pixels, heat_map)
        return make_answer(
            self.predictor,
            self.card,
            output,
            request_id=request_id,
            size=(pixels.shape[0], pixels.shape[1]),
            split=split,
            heat_map=heated,
            preview=shown,
        )

    def _decode(self, data: bytes, with_preview: bool) -> tuple[np.ndarray, torch.Tensor, str | None, str | None]:
        pixels = decode_upload(data, self.limits, self.predictor.min_side)
        shown = data_url(preview(pixels)) if with_preview else None
        return pixels, self.predictor.prepare(pixels), self.predictor.split_of(pixels), shown

    async def _heat_map(self, pixels: np.ndarray, name: str) -> HeatMap:
        if self.heat_maps >= MAX_HEAT_MAPS:
            raise busy(f"{self.heat_maps} heat maps are being made, which is the most.")
        self.heat_maps += 1
        try:
            work: Any = self.batcher.submit_alone(lambda: self.predictor.heat_map(pixels, name))
            return HeatMap(name=name, method=METHOD, image=data_url(await asyncio.wrap_future(work)))
        finally:
            self.heat_maps -= 1


def data_url(jpeg: str) -> str:
    """A JPEG in base64 as an address that a page can show."""
    return f"data:image/jpeg;base64,{jpeg}"
