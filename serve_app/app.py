"""The whole graph on one screen: `serve run configs/local.yaml` and its like build it from here.

Annotations stay evaluated in this module: Serve checks a config's `args` against `build`'s.
"""

from typing import Any

from ray import serve
from ray.serve import Application
from ray.serve.config import RequestRouterConfig

from configs.serve import ServeArgs
from serve_app.graph.deployments import AllStages, Diffusion, Encoder, Vocoder, VoiceMaker
from serve_app.ingress import Ingress
from serve_app.keys import checked_mark


def build(args: ServeArgs) -> Application:
    """Ingress -> Encoder -> Diffusion -> Vocoder (or all three in one), and VoiceMaker beside them."""
    key_mark = checked_mark(args.access)

    def stage(kind: type[Any], name: str | None = None) -> Application:
        return serve.deployment(name=name or kind.__name__)(kind).bind(args)

    to_owners = RequestRouterConfig(
        request_router_class="serve_app.calls.owners:OwnerRouter"  # type: ignore[arg-type]  # Ray declares dict[str, Any]
    )
    return serve.deployment(request_router_config=to_owners)(serve.ingress()(Ingress)).bind(
        args,
        stages=[stage(AllStages, "Stages")] if args.together else [stage(Encoder), stage(Diffusion), stage(Vocoder)],
        voice_maker=stage(VoiceMaker),
        key_mark=key_mark,
    )
