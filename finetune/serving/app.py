"""The routes: a page, its API as JSON and OpenAPI, health and metrics."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from finetune import __version__
from finetune.pages import serve as pages
from finetune.serving.access import Access
from finetune.serving.answer import Answer
from finetune.serving.card import NOTICE, ModelCard
from finetune.serving.gate import Gate, print_line, refusal_response
from finetune.serving.limits import Limits
from finetune.serving.metrics import CONTENT_TYPE, Metrics
from finetune.serving.predictor import Predictor
from finetune.serving.refusal import Refused
from finetune.serving.service import Service
from finetune.serving.uploads import FIELD, read_image_field

OPEN = ("/", "/docs", "/openapi.json", "/health")
"""Routes without a token: they say nothing of the model."""
FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": [FIELD],
                    "properties": {
                        FIELD: {
                            "type": "string",
                            "format": "binary",
                            "description": "A PNG, JPEG or DICOM file; the type is that of the content.",
                        }
                    },
                }
            }
        },
    }
}


class Problem(BaseModel):
    """What a request that is not answered gets."""

    error: str
    request_id: str


class Health(BaseModel):
    """Whether the server answers."""

    status: str


REASONS = {
    400: "The form or a parameter is wrong.",
    401: "A token is needed.",
    408: "The upload took too long.",
    413: "Too many bytes or pixels.",
    415: "No PNG, JPEG or DICOM file.",
    422: "The image is damaged or of a kind that is not read.",
    503: "The server is busy: Retry-After says for how many seconds.",
    504: "The answer took too long.",
}
PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "description": reason} for status, reason in REASONS.items()
}


def create_app(
    predictor: Predictor,
    *,
    limits: Limits | None = None,
    access: Access | None = None,
    max_batch: int = 16,
    max_wait: float = 0.005,
    decoders: int = 2,
    say: Callable[[str], None] = print_line,
) -> Any:
    """The ASGI application of one model; its `state.service` is closed when the application ends.

    Args:
        max_wait: seconds that an image waits for others.
        decoders: threads that decode images.
        say: takes the lines of the log.
    """
    limits, access = limits or Limits(), access or Access()
    service = Service(predictor, limits, max_batch=max_batch, max_wait=max_wait, decoders=decoders)
    metrics = Metrics(lambda: len(service.batcher), lambda: service.admission.requests)
    service.batcher.on_batch = metrics.observe_batch

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.close)

    app = FastAPI(
        title="finetune",
        version=__version__,
        description=NOTICE,
        docs_url=None,  # FastAPI's own pages load scripts from another server
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.service, app.state.metrics = service, metrics

    @app.post("/predict", summary="Predict one image", responses=PROBLEMS, openapi_extra=FORM)
    async def predict(
        request: Request,
        heatmap: Annotated[str | None, Query(description="A class whose evidence is shown over the image.")] = None,
        preview: Annotated[bool, Query(description="Whether the answer holds the decoded image.")] = False,
    ) -> Answer:
        with service.admission.admitted() as taken:
            service.check_class(heatmap)
            deadline = asyncio.get_running_loop().time() + limits.timeout
            try:
                async with asyncio.timeout_at(deadline):
                    kind, length = (request.headers.get(name, "") for name in ("content-type", "content-length"))
                    data = await read_image_field(kind, length, request.stream(), limits, taken)
            except TimeoutError:
                raise Refused(408, f"The upload took more than {limits.timeout:g} s.") from None
            except ClientDisconnect:
                raise Refused(400, "The upload was broken off.") from None
            try:
                async with asyncio.timeout_at(deadline):
                    answer = await service.answer(
                        data, request.state.request_id, heat_map=heatmap, with_preview=preview
                    )
            except TimeoutError:
                raise Refused(504, f"The answer took more than {limits.timeout:g} s.") from None
        if answer.novelty is not None and answer.novelty.unusual:
            metrics.unusual.inc()
        return answer

    @app.get("/model", summary="The model card")
    async def model() -> ModelCard:
        return service.card

    @app.get("/health", summary="Whether the server answers")
    async def health() -> Health:
        return Health(status="ok")

    @app.get("/metrics", summary="Numbers for Prometheus", response_class=PlainTextResponse)
    async def read_metrics() -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE)

    @app.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        html, policy = pages.serve_page(needs_token=access.token is not None)
        return HTMLResponse(html, headers={"Content-Security-Policy": policy})

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        html, policy = pages.api_page(app.openapi())
        return HTMLResponse(html, headers={"Content-Security-Policy": policy})

    for error in (Refused, RequestValidationError, HTTPException):
        app.add_exception_handler(error, _explain)
    routes = [route.path for route in app.routes if hasattr(route, "path")]
    app.add_middleware(Gate, access=access, metrics=metrics, routes=routes, open_routes=OPEN, say=say)
    return app


async def _explain(request: Request, error: Exception) -> JSONResponse:
    """The answer to a request that is refused: a sentence of the program, never values that the client sent."""
    if isinstance(error, HTTPException):
        sentences = {404: "There is no such address.", 405: "The address takes another method."}
        error = Refused(error.status_code, sentences.get(error.status_code, "The request is wrong."))
    elif isinstance(error, RequestValidationError):
        names = sorted({str(problem["loc"][-1]) for problem in error.errors()})
        known = [name for name in names if name in ("heatmap", "preview")]
        error = Refused(400, f"The parameter {', '.join(known) or 'given'} has a wrong value.")
    assert isinstance(error, Refused)
    return refusal_response(error, request.state.request_id)
