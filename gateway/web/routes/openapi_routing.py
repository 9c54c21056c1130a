"""Operations of the OpenAPI document below /gateway/routing."""

from __future__ import annotations

from gateway.web.routes.openapi_parts import (
    COUNT,
    NUMBER,
    TEXT,
    TIME,
    Described,
    Schema,
    list_of,
    object_of,
    ok,
    problem,
    ref_to,
)

_SPEED: Schema = {"type": ["number", "null"], "description": "2 is twice as fast as usual; null if nothing ran there"}
# Members of a backend in two lists: /gateway/routing and /gateway/backends.
MODELS_IN_MEMORY: dict[str, Schema] = {
    "keeps_models": {
        "enum": ["nothing", "last", "newest", "all", None],
        "description": "Models that its launch options keep in memory; null if it does not tell them",
    },
    "has_cache_options": {"type": ["boolean", "null"]},
    "model_loads": COUNT,
    "model_reloads": COUNT,
    "reload_seconds": NUMBER,
    "hint": {"type": ["string", "null"], "description": "A change of its launch options that would spare reloads"},
}
ROUTING_SCHEMAS: dict[str, Schema] = {
    "LearnedBackend": object_of(
        {
            "name": TEXT,
            "speed": _SPEED,
            "holds": list_of(TEXT),
            "models": {
                "type": "array",
                "items": object_of(
                    {"model": TEXT, "speed": NUMBER, "load_seconds": {"type": ["number", "null"], "minimum": 0}}
                ),
                "maxItems": 100,
            },
            **MODELS_IN_MEMORY,
        }
    ),
    "OutOfMemory": object_of(
        {
            "signature": TEXT,
            "tenant": TEXT,
            "model": {"type": ["string", "null"]},
            "backend": {"type": "string", "description": "The last one that was too small"},
            "vram_gib": {"type": "number", "description": "The largest device that was too small"},
            "times": COUNT,
            "last": TIME,
            "until": TIME,
        }
    ),
}
ROUTING_OPERATIONS: dict[tuple[str, str], Described] = {
    ("GET", "/gateway/routing"): Described(
        "The speed of each backend, the load times of models and the models in memory, as learned from runs",
        {
            "200": ok(
                object_of(
                    {
                        "signatures": COUNT,
                        "backends": list_of(ref_to("LearnedBackend")),
                        "out_of_memory": list_of(ref_to("OutOfMemory")),
                    }
                )
            )
        },
    ),
    ("DELETE", "/gateway/routing/times"): Described(
        "Forget what was learned of runs, on one backend or on all",
        {"200": ok(object_of({"forgotten": TEXT})), "404": problem("There is no such backend")},
        {"backend": {"type": "string", "description": "Its name; without it, all"}},
    ),
    ("DELETE", "/gateway/routing/out_of_memory"): Described(
        "Forget that jobs ran out of memory, of one signature or of all",
        {"200": ok(object_of({"forgotten": TEXT})), "404": problem("There is no such signature")},
        {"signature": {"type": "string", "description": "As GET /gateway/routing lists it; without it, all"}},
    ),
}
