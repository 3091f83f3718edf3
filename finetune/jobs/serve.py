"""job=serve: a page and a JSON API over a finished classifier, on this machine alone unless told otherwise."""

import torch

from finetune import model_file
from finetune.config.settings import ServeSettings
from finetune.data.sources.listing import shorten
from finetune.runs.folder import RunFolder
from finetune.steps import prepare


def serve(settings: ServeSettings, run: RunFolder, words: list[str]) -> None:
    """Load the model, open the port, answer until SIGINT or SIGTERM; log.txt has a line per request.

    Raises:
        FinetuneError: no classifier, a token that is too short, or a port that cannot be opened.
    """
    from finetune.serving import server
    from finetune.serving.access import Access, is_local, read_token
    from finetune.serving.app import create_app
    from finetune.serving.limits import Limits
    from finetune.serving.predictor import Predictor

    say = prepare.make_printer(True)
    token = read_token(settings.token_file)
    model = model_file.load(settings.model)
    predictor = Predictor(model, settings.trainer.accelerator)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    listening = server.bind(settings.host, settings.port)
    run.begin_log(words)
    run.write_environment(words, model=model.weights_hash, **model.answers.record())
    app = create_app(
        predictor,
        limits=Limits(
            max_bytes=int(1e6 * settings.max_mb),
            max_pixels=int(1e6 * settings.max_megapixels),
            timeout=settings.timeout,
            max_waiting=settings.max_waiting,
        ),
        access=Access.of(settings.host, token, settings.hosts),
        max_batch=settings.max_batch,
        max_wait=settings.max_wait_ms / 1000,
        decoders=settings.decoders,
    )
    predictor.predict([torch.zeros(model.spec.in_channels, *2 * [model.preprocessing.image_size])])  # the first is slow
    say(f"{model.spec.backbone} of {shorten(model.classes, 6)}, {model.weights_hash[:12]}")
    if predictor.gaussian is None:
        say(f"No novelty: {predictor.no_novelty}. It is unknown whether images are like the training images.")
    if not is_local(settings.host) and token is None:
        say(
            f"warning: host={settings.host} lets others on the network ask, and there is no token. Set FINETUNE_TOKEN "
            "or token_file=FILE, and put a server with TLS before it: uploads are not encrypted."
        )
    say("A research tool, not a medical device.")
    say(f"page: {server.address(listening)}  API: {server.address(listening)}/docs  (Ctrl-C ends it)")
    server.run(app, listening, settings.timeout)
