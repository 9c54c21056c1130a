"""Dashboard "ComfyUI gateway", about the gateway itself: HTTP, sockets, journal, catalogue, limits, process."""

from __future__ import annotations

from panels import Look, Row, dashboard, graph, label_values, table_of, tile
from queries import JOB, Query, at, counted, of, or_zero, process, quantile, rate
from thresholds import GREEN, ORANGE, PLAIN, RED, Json, levels, mapping, thresholds

UID = "comfyui-gateway-process"
LOOP = ("ComfyUIGatewayLoopLate",)
JOURNAL = ("ComfyUIJournalUnwritable",)
LAG = ("ComfyUIJournalLag",)
DISK = ("ComfyUIDataDirLow", "ComfyUIDataDirFull")
CERTIFICATE = ("ComfyUICertificateExpiresSoon", "ComfyUICertificateExpires")
KEYS = ("ComfyUIKeyGuessing",)
TASKS = ("ComfyUIGatewayTaskFailed", "ComfyUIGatewayTaskRestarts")
FULL = ("ComfyUIGatewayFull",)
WEBHOOKS = ("ComfyUIWebhooksFailing",)
STORAGE = ("ComfyUIStorageFailing",)
SPOOL = ("ComfyUIStorageSpoolFull",)
DAY = 86400.0
_FREE = f"{of('data_dir_free_bytes')} / {of('data_dir_size_bytes')}"
_GUESSED = 'reason=~"unknown|locked out"'


def _health() -> Row:
    answers = tuple(mapping({"0": ("down", RED), "1": ("up", GREEN)}))
    writable = tuple(mapping({"0": ("no", RED), "1": ("yes", GREEN)}))
    failed, asked = of("http_requests_total", 'status=~"5.."'), of("http_requests_total")
    errors = f"sum({rate(failed)}) / sum({rate(asked)})"
    return Row(
        "The gateway",
        [
            tile(
                "Gateway",
                "If Prometheus could read /metrics.",
                Query(f'min(up{{job="{JOB}", instance=~"$instance"}})'),
                Look(
                    alerts=("ComfyUIGatewayDown", "ComfyUIGatewayAbsent"),
                    steps=levels((None, RED), (1, GREEN)),
                    mappings=answers,
                    missing="absent",
                ),
            ),
            tile(
                "Running for",
                "Since the process started, of the one that started last.",
                Query(f"time() - max({process('process_start_time_seconds')})"),
                Look("s", ("ComfyUIGatewayRestarts",), PLAIN, decimals=0),
                graph=False,
            ),
            tile(
                "Event loop late, p99",
                "Lateness of the event loop's timer. All requests and events wait as long.",
                Query(quantile(0.99, of("loop_delay_seconds_bucket"))),
                Look("s", LOOP, thresholds(LOOP)),
            ),
            tile(
                "Event delay, p99",
                "From a backend's message to the bytes at the client's socket.",
                Query(quantile(0.99, of("event_delay_seconds_bucket"))),
                Look("s", steps=PLAIN, missing="no events"),
            ),
            tile(
                "Answers with 5xx",
                "Share of all HTTP answers.",
                Query(or_zero(errors)),
                Look("percentunit", FULL, levels((None, GREEN), (0.01, ORANGE), (0.05, RED))),
            ),
            tile(
                "Background tasks failed",
                "Since the gateway started. Each is a defect, with a traceback in the log.",
                Query(or_zero(f"sum({of('task_failures_total')})")),
                Look(alerts=TASKS, steps=levels((None, GREEN), (1, ORANGE))),
                graph=False,
            ),
            tile(
                "Journal takes writes",
                "No: the disk of data_dir is full or read-only. New prompts and uploads get 503.",
                Query(f"min({of('journal_writable')})"),
                Look(alerts=JOURNAL, steps=levels((None, RED), (1, GREEN)), mappings=writable),
            ),
            tile(
                "Journal lag",
                "Age of the oldest write that waits for the disk.",
                Query(f"max({of('journal_lag_seconds')})"),
                Look("s", LAG, thresholds(LAG)),
            ),
            tile(
                "Disk free",
                "Of the file system of data_dir.",
                Query(f"min({_FREE})"),
                Look("percentunit", DISK, thresholds(DISK), low=0, high=1),
            ),
            tile(
                "Certificate expires in",
                "Only with server.tls.",
                Query(f"min({of('certificate_expiry_timestamp_seconds')} - time()) / {DAY:.0f}"),
                Look("suffix:days", CERTIFICATE, thresholds(CERTIFICATE, scale=DAY), decimals=1, missing="no TLS"),
                graph=False,
            ),
            tile(
                "Wrong keys, 5 minutes",
                "Keys that nobody has, or from an address that is locked out.",
                Query(or_zero(f"sum(increase({of('keys_refused_total', _GUESSED)}[5m]))")),
                Look("short", KEYS, thresholds(KEYS), decimals=0),
            ),
            tile(
                "Catalogue, oldest",
                "Since a backend's node classes and models were last confirmed.",
                Query(f"max({at('catalogue_age_seconds')})"),
                Look("s", ("ComfyUICatalogueStale",), thresholds(("ComfyUICatalogueStale",)), decimals=0),
            ),
        ],
    )


def _http() -> Row:
    return Row(
        "HTTP",
        [
            graph(
                "Requests by route",
                "A route is a template, never a path.",
                [Query(f"sum by (route) ({rate(of('http_requests_total'))})", "{{route}}")],
                Look("reqps", low=0),
                size=(12, 9),
                table=True,
            ),
            graph(
                "p95 of the time by route",
                "From a request's head to the end of its answer; of /ws, how long the WebSocket was open.",
                [Query(quantile(0.95, of("http_request_seconds_bucket"), "route"), "{{route}}")],
                Look("s", low=0),
                size=(12, 9),
                table=True,
            ),
            graph(
                "Answers by status",
                "",
                [Query(f"sum by (status) ({rate(of('http_requests_total'))})", "{{status}}")],
                Look("reqps", low=0),
                stacked=True,
            ),
            graph(
                "Bytes",
                "Heads count, TLS does not.",
                [
                    Query(f"sum by (from) ({rate(of('received_bytes_total'))})", "from {{from}}"),
                    Query(f"sum by (to) ({rate(of('sent_bytes_total'))})", "to {{to}}"),
                ],
                Look("Bps", low=0),
            ),
            graph(
                "Connections",
                "Of clients, WebSockets among them; refused and cut ones are counted per interval.",
                [
                    Query(f"sum({of('connections_open')})", "open"),
                    Query(or_zero(f"sum({counted(of('connections_refused_total'))})"), "refused"),
                    Query(or_zero(f"sum({counted(of('connections_cut_total'))})"), "cut"),
                ],
                Look(low=0),
            ),
        ],
    )


def _events() -> Row:
    delays = [
        Query(quantile(share, of("event_delay_seconds_bucket")), text)
        for share, text in ((0.5, "p50"), (0.95, "p95"), (0.99, "p99"))
    ]
    return Row(
        "WebSockets and events",
        [
            graph(
                "Event delay",
                "Frames that wait on purpose, for their prompt's turn or for the history entry, are left out.",
                delays,
                Look("s", low=0),
            ),
            graph(
                "Frames sent by kind",
                "Dropped: previews and progress left out for a slow reader.",
                [
                    Query(f"sum by (kind) ({rate(of('events_relayed_total'))})", "{{kind}}"),
                    Query(or_zero(f"sum({rate(of('events_dropped_total'))})"), "dropped"),
                ],
                Look("mps", low=0),
            ),
            graph(
                "WebSockets",
                "Of clients. Closed by the gateway: the reader fell behind, or the client sent too much; per interval.",
                [
                    Query(f"sum({of('sockets_open')})", "open"),
                    Query(f"sum(increase({of('sockets_closed_slow_total')}[$__rate_interval]))", "closed, slow"),
                    Query(
                        f"sum(increase({of('sockets_closed_flooding_total')}[$__rate_interval]))", "closed, flooding"
                    ),
                ],
                Look(low=0),
            ),
            graph(
                "Buffers for slow readers",
                "Bytes that wait, in memory and on disk.",
                [
                    Query(f"sum({of('sockets_buffered_bytes')})", "memory"),
                    Query(f"sum({of('sockets_spooled_bytes')})", "disk"),
                ],
                Look("bytes", low=0),
            ),
            graph(
                "Events that are not read",
                "Messages of a backend that are too large or not of ComfyUI's form, and sockets whose events another"
                " program took; per interval.",
                [
                    Query(or_zero(f"sum({counted(at('events_refused_total'))})"), "refused"),
                    Query(or_zero(f"sum({counted(at('backend_sockets_deaf_total'))})"), "deaf sockets"),
                ],
                Look(alerts=("ComfyUIBackendSocketDeaf",), low=0),
            ),
        ],
    )


def _data() -> Row:
    commits = [
        Query(quantile(share, of("journal_commit_seconds_bucket")), text)
        for share, text in ((0.5, "p50"), (0.95, "p95"), (0.99, "p99"))
    ]
    return Row(
        "Journal and disk",
        [
            graph("Journal commits", "Time of a commit to the disk.", commits, Look("s", low=0)),
            graph(
                "Journal lag",
                "Age of the oldest write that waits for the disk.",
                [Query(f"max({of('journal_lag_seconds')})", "lag")],
                Look("s", LAG, thresholds(LAG), low=0),
            ),
            graph(
                "Writes owed",
                "Writes kept in memory until the disk takes them.",
                [Query(f"sum({of('journal_owed')})", "owed")],
                Look(alerts=JOURNAL, low=0),
            ),
            graph(
                "Disk free",
                "Share of the file system of data_dir.",
                [Query(_FREE, "{{instance}}")],
                Look("percentunit", DISK, thresholds(DISK), low=0, high=1),
                size=(12, 8),
            ),
            graph(
                "Kept on the disk",
                "Aside: uploads that nothing names any more.",
                [
                    Query(f"sum({of('journal_bytes')})", "journal"),
                    Query(f"sum({of('uploads_bytes')})", "uploads"),
                    Query(f"sum({of('uploads_aside_bytes')})", "uploads aside"),
                ],
                Look("bytes", low=0),
                size=(12, 8),
            ),
        ],
    )


def _calls_to_backends() -> Row:
    return Row(
        "Calls to backends",
        [
            graph(
                "Catalogue age by backend",
                "Since a backend's node classes were last confirmed.",
                [Query(f"max by (backend) ({at('catalogue_age_seconds')})", "{{backend}}")],
                Look("s", ("ComfyUICatalogueStale",), thresholds(("ComfyUICatalogueStale",)), low=0),
            ),
            graph(
                "Catalogue reads by kind",
                "Requests for node classes and models.",
                [Query(f"sum by (kind) ({counted(at('catalogue_reads_total'))})", "{{kind}}")],
                Look(low=0),
                bars=True,
                stacked=True,
            ),
            graph(
                "Share of backends' time for catalogue reads",
                "At most: while a ComfyUI describes its classes, it answers nothing else.",
                [Query(f"sum by (backend) ({rate(at('catalogue_read_seconds_total'))})", "{{backend}}")],
                Look("percentunit", low=0),
            ),
            graph(
                "Probes, p95",
                "Of those that were answered.",
                [Query(quantile(0.95, at("probe_seconds_bucket", 'outcome="ok"'), "backend"), "{{backend}}")],
                Look("s", low=0),
            ),
            graph(
                "Prompts sent by outcome",
                "Taken is good. Refused: the backend's own 400.",
                [Query(f"sum by (outcome) ({counted(at('dispatch_attempts_total'))})", "{{outcome}}")],
                Look(low=0),
                bars=True,
                stacked=True,
            ),
            graph(
                "Files put on backends, and jobs stolen",
                "Uploads brought to a backend, by outcome; jobs that an idle backend stole from a busy one.",
                [
                    Query(f"sum by (outcome) ({counted(at('files_placed_total'))})", "files {{outcome}}"),
                    Query(or_zero(f"sum({counted(at('takeovers_total'))})"), "jobs stolen"),
                ],
                Look(low=0),
                bars=True,
            ),
        ],
    )


def _limits() -> Row:
    return Row(
        "Limits and keys",
        [
            graph(
                "Refused for a limit",
                "By the name of the limit: a tenant's, or max_waiting and max_waiting_bytes of the gateway.",
                [Query(f"sum by (limit) ({counted(of('limited_total'))})", "{{limit}}")],
                Look(alerts=FULL, low=0),
                bars=True,
                stacked=True,
            ),
            graph(
                "Keys refused by reason",
                "The audit log has the addresses.",
                [Query(f"sum by (reason) ({counted(of('keys_refused_total'))})", "{{reason}}")],
                Look(alerts=KEYS, low=0),
                bars=True,
                stacked=True,
            ),
            graph(
                "Addresses locked out",
                "Addresses that wait now for having presented wrong keys.",
                [Query(f"sum({of('addresses_locked')})", "locked out")],
                Look(alerts=KEYS, low=0),
            ),
        ],
    )


def _webhooks() -> Row:
    seconds = [
        Query(quantile(share, of("webhook_delivery_seconds_bucket")), text)
        for share, text in ((0.5, "p50"), (0.95, "p95"))
    ]
    return Row(
        "Webhooks",
        [
            graph(
                "Webhooks: attempts by outcome",
                "Failed is tried again, dead is not, and can be replayed. Dropped: its event was kept no longer.",
                [Query(f"sum by (outcome) ({counted(of('webhook_deliveries_total'))})", "{{outcome}}")],
                Look(alerts=WEBHOOKS, low=0),
                bars=True,
                stacked=True,
            ),
            graph(
                "Webhooks: pending and dead",
                "Deliveries that are still to be made, and those that came to nothing and can be replayed.",
                [
                    Query(f"sum({of('webhook_pending')})", "pending"),
                    Query(f"sum({of('webhook_dead')})", "dead"),
                ],
                Look(alerts=WEBHOOKS, low=0),
            ),
            graph(
                "Webhooks: time of an attempt",
                "Until the receiver's answer, or the failure.",
                seconds,
                Look("s", low=0),
            ),
        ],
    )


def _storage() -> Row:
    seconds = [
        Query(quantile(share, of("storage_copy_seconds_bucket")), text) for share, text in ((0.5, "p50"), (0.95, "p95"))
    ]
    used = f"{of('storage_spool_bytes')} / ({of('storage_spool_max_bytes')} > 0)"
    return Row(
        "Object storage",
        [
            graph(
                "Storage: copies by outcome",
                "Spooled: the bytes wait on the gateway's disk. Failed is tried again.",
                [Query(f"sum by (outcome) ({counted(of('storage_copies_total'))})", "{{outcome}}")],
                Look(alerts=STORAGE, low=0),
                bars=True,
                stacked=True,
            ),
            graph(
                "Storage: files pending",
                "Files that are to be copied, those on the gateway's disk among them.",
                [Query(f"sum({of('storage_pending')})", "pending")],
                Look(alerts=STORAGE, low=0),
            ),
            graph(
                "Storage: longest wait",
                "Age of the file that waits longest.",
                [Query(f"max({of('storage_pending_age_seconds')})", "age")],
                Look("s", STORAGE, levels((None, GREEN), (1800, ORANGE)), low=0),
            ),
            graph(
                "Storage: spool",
                "Used share of storage.max_spool. No data while object storage is off.",
                [Query(used, "{{instance}}")],
                Look("percentunit", SPOOL, thresholds(SPOOL), low=0, high=1),
            ),
            graph(
                "Storage: bytes copied",
                "",
                [Query(f"sum({rate(of('storage_bytes_total'))})", "copied")],
                Look("Bps", low=0),
            ),
            graph("Storage: time of a copy", "", seconds, Look("s", low=0)),
            graph(
                "Storage: up",
                "1 while object storage takes what it is given, or is off.",
                [Query(of("storage_up"), "{{instance}}")],
                Look(alerts=STORAGE, low=0, high=1),
                size=(24, 4),
            ),
        ],
    )


def _process() -> Row:
    late = [
        Query(quantile(share, of("loop_delay_seconds_bucket")), text) for share, text in ((0.5, "p50"), (0.99, "p99"))
    ]
    return Row(
        "Process",
        [
            graph("Event loop late", "", late, Look("s", LOOP, thresholds(LOOP), low=0)),
            graph(
                "CPU",
                "Of the process. The event loop uses one core at most; processes apart parse large prompts.",
                [Query(rate(process("process_cpu_seconds_total")), "{{instance}}")],
                Look("percentunit", low=0),
            ),
            graph(
                "Memory",
                "",
                [Query(process("process_resident_memory_bytes"), "{{instance}}")],
                Look("bytes", low=0),
            ),
            graph(
                "Tasks of the event loop",
                "A few a backend, one a connection, one a job that is being sent or collected.",
                [Query(of("tasks"), "{{instance}}")],
                Look(low=0),
            ),
            graph(
                "Open files",
                "Share of the process's maximum.",
                [Query(f"{process('process_open_fds')} / {process('process_max_fds')}", "{{instance}}")],
                Look("percentunit", steps=levels((None, GREEN), (0.8, ORANGE)), low=0, high=1),
            ),
            graph(
                "Background tasks",
                "Errors and restarts of the gateway's own tasks, per interval. Each error is a defect.",
                [
                    Query(or_zero(f"sum({counted(of('task_failures_total'))})"), "failed"),
                    Query(or_zero(f"sum({counted(of('task_restarts_total'))})"), "restarted"),
                ],
                Look(alerts=TASKS, low=0),
            ),
            table_of(
                "Versions",
                "",
                of("build_info"),
                ["__name__", "job"],
                Look(),
                size=(24, 4),
            ),
        ],
    )


def gateway(docs: str) -> Json:
    """Return the dashboard. `docs` is the address of docs/monitoring.md."""
    backends = label_values("backend", "Backend", of("backend_up"), "backend")
    about_itself = [_health(), _http(), _events(), _data()]
    rows = [*about_itself, _calls_to_backends(), _limits(), _webhooks(), _storage(), _process()]
    text = "The gateway's own health: how fast it answers, what it owes the disk, what it refuses."
    return dashboard(UID, "ComfyUI gateway", text, rows, [backends], docs)
