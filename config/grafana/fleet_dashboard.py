"""Dashboard "ComfyUI fleet", for the person who is paged: signals, backends, queue, times, failures, GPUs."""

from __future__ import annotations

from panels import Column, Look, Row, dashboard, graph, label_values, table_by, table_of, tile, timeline
from queries import Query, at, by_model, counted, of, or_zero, quantile, rate
from thresholds import BLUE, GREEN, NONE_IS_GOOD, ORANGE, RED, Json, mapping, thresholds

UID = "comfyui-gateway-fleet"
_RULES = "Needs the recording rules of config/prometheus/alerts.yml."
_VRAM = "ComfyUI keeps the models of the last prompt in VRAM, and counts them as used."
_USED_VRAM = f"1 - {at('backend_vram_free_bytes')} / {at('backend_vram_total_bytes')}"
_USED_RAM = f"1 - {at('backend_ram_free_bytes')} / {at('backend_ram_total_bytes')}"
_BUSY = rate(at("backend_busy_seconds_total"))
_IDLE = f"{at('backend_queue_pending')} > 0 and {at('backend_up')} == 1 unless {_BUSY} > 0"
_RUN = "comfyui_gateway:job_run_seconds"
_SLOWER = f"{by_model(f'{_RUN}:p95_10m')} / {by_model(f'{_RUN}:p95_baseline')}"
# Jobs take seconds to minutes: over a shorter interval few have ended.
_STEP = "2m"

WAIT = ("ComfyUIJobWaitHigh",)
RUN = ("ComfyUIRunTimeHigh",)
ERRORS = ("ComfyUIErrorRateHigh", "ComfyUIErrorRateCritical")
MAJORITY = ("ComfyUIMostJobsFail",)
VRAM = ("ComfyUIVramHigh", "ComfyUIVramFull")
RAM = ("ComfyUIHostRamLow",)
QUEUE = ("ComfyUIQueueBacklog", "ComfyUIQueueBacklogPersists")
DOWN = ("ComfyUIBackendDown", "ComfyUIAllBackendsDown")

STATE = (
    f"{at('backend_up')} + 10 * {at('backend_drained')} + 100 * {at('backend_poisoned')}"
    f" + 1000 * {at('backend_ejected')}"
)
STATES = mapping(
    {
        "0": ("down", RED),
        "1": ("up", GREEN),
        "10-11": ("drained", BLUE),
        "100-111": ("poisoned", RED),
        "1000-1111": ("ejected", ORANGE),
    }
)
_PRESENCE = mapping({"0": ("–", GREEN), "1": ("yes", ORANGE)})


def _signals() -> Row:
    return Row(
        "The production guide's signals",
        [
            tile(
                "Prompts pending",
                "Prompts that wait, in the gateway and on all backends.",
                Query(f"sum({of('queue_pending')})"),
                Look(alerts=QUEUE, steps=thresholds(QUEUE, whole=True)),
            ),
            tile(
                "Job wait, p95",
                f"From acceptance to start, of jobs that started in the last 5 minutes, 3 at least. {_RULES}",
                Query(f"max({of('comfyui_gateway:job_wait_seconds:p95_5m')})"),
                Look("s", WAIT, thresholds(WAIT), missing="no jobs"),
            ),
            tile(
                "Job run, p95 ÷ usual p95",
                "The p95 of the last 10 minutes, divided by the median of the last 3 days; of the model that is slowest"
                f" by that. {_RULES}",
                Query(f"max({_SLOWER})"),
                Look("short", RUN, thresholds(RUN), decimals=1, missing="no jobs"),
            ),
            tile(
                "Error rate, 5 minutes",
                f"Share of jobs that failed by the fault of a backend or the gateway. {_RULES}",
                Query(f"max({of('comfyui_gateway:job_failures:ratio5m')})"),
                Look("percentunit", ERRORS, thresholds(ERRORS), missing="no jobs"),
            ),
            table_of(
                "Alerts that fire",
                "From Prometheus. The runbook of each is in docs/monitoring.md, under its name.",
                'ALERTS{alertname=~"ComfyUI.+", alertstate="firing"}',
                ["__name__", "alertstate", "job"],
                Look(missing="none"),
                size=(8, 8),
            ),
            tile(
                "VRAM used, fullest GPU",
                _VRAM,
                Query(f"max({_USED_VRAM})"),
                Look("percentunit", VRAM, thresholds(VRAM), low=0, high=1, missing="no GPU"),
            ),
            tile(
                "GPUs idle with a queue",
                "Backends that have pending prompts and run none.",
                Query(or_zero(f"count({_IDLE})")),
                Look(alerts=("ComfyUIGpuIdle", "ComfyUIJobsStalled"), steps=NONE_IS_GOOD),
            ),
            tile(
                "Host RAM used, fullest",
                "Of the backends' hosts. A ComfyUI may exhaust its host's memory when it changes models.",
                Query(f"max({_USED_RAM})"),
                Look("percentunit", RAM, thresholds(RAM, from_one=True), low=0, high=1),
            ),
            tile(
                "Backends down",
                "Backends that can't run jobs, drained or not.",
                Query(f"sum(1 - {at('backend_up')})"),
                Look(alerts=DOWN, steps=NONE_IS_GOOD),
            ),
        ],
    )


def _backends() -> Row:
    share = Look("percentunit", decimals=0)
    state = Look(mappings=tuple(STATES))
    flag = Look(mappings=tuple(_PRESENCE))
    columns = [
        Column("State", f"max by (backend) ({STATE})", state, 90),
        Column("Running", f"max by (backend) ({at('backend_queue_running')})"),
        Column("Pending", f"max by (backend) ({at('backend_queue_pending')})"),
        Column("Busy", f"max by (backend) ({_BUSY})", share),
        Column(
            "VRAM used", f"max by (backend) ({_USED_VRAM})", Look("percentunit", steps=thresholds(VRAM), decimals=0)
        ),
        Column(
            "Host RAM used",
            f"max by (backend) ({_USED_RAM})",
            Look("percentunit", steps=thresholds(RAM, from_one=True), decimals=0),
        ),
        Column("Stalled jobs", f"max by (backend) ({at('jobs_stalled')})", Look(steps=NONE_IS_GOOD)),
        Column("VRAM guard", f"max by (backend) ({at('backend_vram_guarded')})", flag),
    ]
    poisoned = ("ComfyUIBackendPoisoned", "ComfyUIBackendEjected", "ComfyUIBackendDrained", "ComfyUIVramGuardStuck")
    return Row(
        "Backends",
        [
            table_by(
                "backend",
                "Backends now",
                "The gateway lets a backend have no work while it is drained (by an admin), poisoned (its process can't"
                " use the GPU and needs a restart), ejected (it failed jobs in a row) or guarded (its VRAM is full).",
                columns,
                Look(alerts=(*DOWN, *poisoned)),
                size=(14, 9),
            ),
            timeline(
                "State of backends",
                "If a backend has several states, the one that needs somebody most.",
                Query(f"max by (backend) ({STATE})", "{{backend}}"),
                Look(mappings=tuple(STATES), alerts=DOWN),
                size=(10, 9),
            ),
        ],
    )


def _queue() -> Row:
    return Row(
        "Queue",
        [
            graph(
                "Prompts that wait",
                "All: in the gateway and pending on backends, others' prompts included.",
                [
                    Query(f"sum({of('queue_pending')})", "all"),
                    Query(f"sum({of('jobs_waiting')})", "in the gateway"),
                ],
                Look(alerts=QUEUE, steps=thresholds(QUEUE), low=0),
            ),
            graph(
                "Pending by backend",
                "The gateway's own prompts as they are, others' at the last probe.",
                [Query(f"sum by (backend) ({at('backend_queue_pending')})", "{{backend}}")],
                Look(low=0),
                stacked=True,
            ),
            graph(
                "Jobs",
                "Open: accepted and not ended. Stalled: no event for dispatch.stall_after. Running: at the last probe.",
                [
                    Query(f"sum({of('jobs_open')})", "open"),
                    Query(f"sum({at('backend_queue_running')})", "running"),
                    Query(f"sum({at('jobs_stalled')})", "stalled"),
                ],
                Look(alerts=("ComfyUIJobsStalled",), low=0),
            ),
        ],
    )


def _two(name: str) -> list[Query]:
    """Return the p50 and the p95 of a histogram by model."""
    selector = by_model(f"{name}_bucket")
    return [
        Query(quantile(share, selector, "model"), f"{{{{model}}}} {text}", exemplars=share > 0.9)
        for share, text in ((0.5, "p50"), (0.95, "p95"))
    ]


def _times() -> Row:
    return Row(
        "Times",
        [
            graph(
                "Wait by model",
                "From acceptance to start. By model if auth.metrics is key, else of all jobs together.",
                _two("job_wait_seconds"),
                Look("s", WAIT, thresholds(WAIT), low=0),
                step=_STEP,
            ),
            graph(
                "Run by model",
                "From start to result, of jobs that succeeded. SDXL with 30 steps takes some 8 s on an A100.",
                _two("job_run_seconds"),
                Look("s", low=0),
                step=_STEP,
            ),
            graph(
                "Total by model",
                "From acceptance to result, of jobs that succeeded.",
                _two("job_total_seconds"),
                Look("s", low=0),
                step=_STEP,
            ),
            graph(
                "Run p95 ÷ usual p95",
                f"3 and more: a GPU throttles, models are loaded again and again, or workflows changed. {_RULES}",
                [Query(f"max by (model) ({_SLOWER})", "{{model}}")],
                Look("short", RUN, thresholds(RUN), low=0, decimals=1),
                size=(12, 8),
                step=_STEP,
            ),
            graph(
                "Jobs ended per minute",
                "By outcome; on the chosen backends.",
                [Query(f"60 * sum by (outcome) ({rate(at('jobs_total'))})", "{{outcome}}")],
                Look("cpm", ("ComfyUINoJobEnds",), low=0),
                size=(12, 8),
                step=_STEP,
                stacked=True,
            ),
        ],
    )


def _failures() -> Row:
    failures, jobs = counted(at("job_failures_total")), counted(at("jobs_total"))
    return Row(
        "Failures",
        [
            graph(
                "Error rate, 5 minutes",
                "Share of the jobs that failed by the fault of a backend or the gateway. Callers' own errors and"
                f" cancelled jobs do not count. {_RULES}",
                [Query(f"max({of('comfyui_gateway:job_failures:ratio5m')})", "error rate")],
                Look("percentunit", ERRORS, thresholds(ERRORS), low=0, high=1),
            ),
            graph(
                "Share of failed jobs by fault",
                "Of jobs that ended in the interval. If most fail by callers' fault, a custom node may be broken.",
                [Query(f"sum by (fault) ({failures}) / on () group_left () sum({jobs})", "{{fault}}")],
                Look("percentunit", MAJORITY, thresholds(MAJORITY), low=0, high=1),
                step=_STEP,
                stacked=True,
            ),
            graph(
                "Failed jobs by backend and fault",
                "Jobs that ended with an error in the interval.",
                [Query(f"sum by (backend, fault) ({failures})", "{{backend}}: {{fault}}")],
                Look(alerts=("ComfyUIResultsUnreadable",), low=0),
                step=_STEP,
                bars=True,
                stacked=True,
            ),
            graph(
                "Retries by backend and reason",
                "Jobs sent again; the backend is the one that failed them.",
                [Query(f"sum by (backend, reason) ({counted(at('jobs_retried_total'))})", "{{backend}}: {{reason}}")],
                Look(alerts=("ComfyUIVramExhausted",), low=0),
                step=_STEP,
                bars=True,
                stacked=True,
            ),
            graph(
                "Healing by the gateway",
                "Restarts of backends by outcome, and POST /free by the VRAM guard.",
                [
                    Query(
                        f"sum by (backend, outcome) ({counted(at('backend_restarts_total'))})",
                        "{{backend}}: restart {{outcome}}",
                    ),
                    Query(f"sum by (backend) ({counted(at('vram_frees_total'))})", "{{backend}}: VRAM freed"),
                ],
                Look(alerts=("ComfyUIRestartFailed", "ComfyUIRestartLimitReached"), low=0),
                step=_STEP,
                bars=True,
                stacked=True,
            ),
            graph(
                "Refused prompts",
                "By the type of the error; they never became jobs. And graphs that are refused for a time, because they"
                " left GPUs unusable.",
                [
                    Query(f"sum by (error) ({counted(of('prompts_refused_total'))})", "{{error}}"),
                    Query(f"sum({of('graphs_refused')})", "graphs refused now"),
                ],
                Look(alerts=("ComfyUIGraphRefused",), low=0),
                step=_STEP,
            ),
        ],
    )


def _gpus() -> Row:
    return Row(
        "GPUs and hosts",
        [
            graph(
                "Busy share by backend",
                "Share of the time with a running prompt, others' prompts included. If it is 0 and prompts are pending,"
                " the executor has ended or hangs.",
                [Query(f"max by (backend) ({_BUSY})", "{{backend}}")],
                Look("percentunit", ("ComfyUIGpuIdle",), low=0, high=1),
                size=(12, 8),
                table=True,
            ),
            graph(
                "Model loads per minute",
                "Jobs whose model was not in memory. Many of them: too many models for this fleet.",
                [Query(f"60 * sum by (backend) ({rate(at('model_loads_total'))})", "{{backend}}")],
                Look("cpm", low=0),
                size=(12, 8),
                step=_STEP,
                table=True,
            ),
            graph(
                "VRAM used",
                f"At the last probe. {_VRAM} Peaks of a job are shorter than the pause between two probes.",
                [Query(f"max by (backend, device) ({_USED_VRAM})", "{{backend}} {{device}}")],
                Look("percentunit", VRAM, thresholds(VRAM), low=0, high=1),
                size=(12, 8),
                table=True,
            ),
            graph(
                "Host RAM used",
                "At the last probe, of the backends' hosts.",
                [Query(f"max by (backend) ({_USED_RAM})", "{{backend}}")],
                Look("percentunit", RAM, thresholds(RAM, from_one=True), low=0, high=1),
                size=(12, 8),
                table=True,
            ),
        ],
    )


def _exporter() -> Row:
    """Return the row for NVIDIA's exporter, whose series get a label `backend` as docs/monitoring.md shows."""
    chosen = 'backend=~"$backend"'
    used = f"DCGM_FI_DEV_FB_USED{{{chosen}}}"
    share = f"{used} / ({used} + DCGM_FI_DEV_FB_FREE{{{chosen}}})"
    busy = f"max by (backend) ({_BUSY})"
    utilization = f"max by (backend) (DCGM_FI_DEV_GPU_UTIL{{{chosen}}})"
    return Row(
        "NVIDIA exporter (optional)",
        [
            graph(
                "GPU utilization",
                "DCGM_FI_DEV_GPU_UTIL of dcgm-exporter, by the label backend: docs/monitoring.md, NVIDIA exporter.",
                [Query(f"{utilization} / 100", "{{backend}}")],
                Look("percentunit", ("ComfyUIGpuIdle",), low=0, high=1),
            ),
            graph(
                "Busy without GPU work",
                "Busy share less GPU utilization. If it stays high, jobs load models, compute on the CPU, or hang.",
                [Query(f"{busy} - on (backend) {utilization} / 100", "{{backend}}")],
                Look("percentunit", high=1),
            ),
            graph(
                "VRAM used, as the driver sees it",
                "Of all processes on the GPU; ComfyUI's own figure is above.",
                [Query(f"max by (backend) ({share})", "{{backend}}")],
                Look("percentunit", VRAM, thresholds(VRAM), low=0, high=1),
            ),
        ],
        folded=True,
    )


def fleet(docs: str) -> Json:
    """Return the dashboard. `docs` is the address of docs/monitoring.md."""
    models = label_values("model", "Model", of("job_wait_seconds_count"), "model")
    backends = label_values("backend", "Backend", of("backend_up"), "backend")
    rows = [_signals(), _backends(), _queue(), _times(), _failures(), _gpus(), _exporter()]
    text = "For the person who is paged: what the production guide watches, and where it goes wrong."
    return dashboard(UID, "ComfyUI fleet", text, rows, [backends, models], docs)
