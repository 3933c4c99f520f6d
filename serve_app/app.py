"""The whole graph on one screen: `serve run configs/local.yaml` builds it from here.

Annotations stay evaluated in this module: Serve checks a config's `args` against `build`'s.
"""

from typing import Any

from ray import serve
from ray.serve import Application

from configs.serve import ServeArgs
from serve_app.deployments import Diffusion, Encoder, Vocoder, VoiceMaker
from serve_app.ingress import Ingress


def build(args: ServeArgs) -> Application:
    """Ingress -> Encoder -> Diffusion -> Vocoder, and VoiceMaker beside them."""

    def stage(kind: type[Any]) -> Application:
        return serve.deployment()(kind).bind(args)

    return serve.deployment()(serve.ingress()(Ingress)).bind(
        args,
        encoder=stage(Encoder),
        diffusion=stage(Diffusion),
        vocoder=stage(Vocoder),
        voice_maker=stage(VoiceMaker),
    )
