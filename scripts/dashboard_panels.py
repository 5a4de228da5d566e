"""The dashboard's panels on calls: a row for each question of docs/runbook.md, with panels for its answers."""

from __future__ import annotations

from dashboard_queries import GREEN, ORANGE, OURS, RED, REPLICA, UNARY, Panel, handling, increase, mean, quantile, rate

HTTP = "http_server_request_duration_seconds"

CALLS: dict[str, tuple[Panel, ...]] = {
    "Is it up?": (
        Panel(
            "Replicas that serve",
            "short",
            ((f"sum(digits_serving{{{REPLICA}}}) or vector(0)", "serving"),),
            "Replicas whose health is SERVING. At 0 every call fails.",
            "stat",
            ((1, GREEN),),
            RED,
        ),
        Panel(
            "Alerts firing",
            "short",
            (('count(ALERTS{alertstate="firing",alertname=~"Digitserve.*"}) or vector(0)', "firing"),),
            "docs/runbook.md has a section for each.",
            "stat",
            ((1, RED),),
        ),
        Panel(
            "Since the last success",
            "s",
            ((f"time() - max(digits_last_success_timestamp_seconds{{{REPLICA}}} > 0)", "age"),),
            "Seconds since the model last answered. It grows without load only.",
            "stat",
            ((120, ORANGE),),
        ),
        Panel(
            "Starts in the last hour",
            "short",
            ((f"sum by (host) (job_instance_host:process_start:changes1h{{{REPLICA}}})", "{{host}}"),),
            "Restarts of the process of each container or pod.",
            "stat",
            ((1, ORANGE), (3, RED)),
        ),
        Panel(
            "Alerts by name",
            "short",
            (('ALERTS{alertstate="firing",alertname=~"Digitserve.*"}', "{{alertname}} {{instance}}"),),
            "Alerts that fire now, and their replicas.",
            "table",
        ),
        Panel(
            "Model in service",
            "short",
            ((f"digits_model_info{{{REPLICA}}}", "{{instance}}"),),
            "The model file of each replica, its digests, and the execution provider that runs it.",
            "table",
        ),
        Panel(
            "Program in service",
            "short",
            ((f"digits_server_info{{{REPLICA}}}", "{{instance}}"),),
            "The host (container or pod) behind each address, and the versions that it runs.",
            "table",
        ),
    ),
    "How high is the load?": (
        Panel(
            "Calls by method",
            "reqps",
            ((f"{rate('grpc_server_started_total', OURS, 'grpc_method')} > 0", "{{grpc_method}}"),),
            "Calls of digits.v1 and of the Open Inference Protocol, without health checks.",
        ),
        Panel(
            "Images answered a second",
            "short",
            ((rate("digits_predictions_total"), "images"),),
            "A call may contain many images.",
        ),
        Panel(
            "Calls by replica",
            "reqps",
            ((rate("grpc_server_started_total", OURS, "instance"), "{{instance}}"),),
            "Equal behind Envoy. Without it a connection stays with one replica.",
        ),
    ),
    "What fails?": (
        Panel(
            "Calls by outcome",
            "reqps",
            ((f"{rate('grpc_server_handled_total', OURS, 'grpc_code')} > 0", "{{grpc_code}}"),),
            "By gRPC status code.",
        ),
        Panel(
            "Faults of the service",
            "reqps",
            (
                (
                    rate("grpc_server_handled_total", f'{OURS},grpc_code=~"Unknown|Internal|DataLoss"', "grpc_method"),
                    "{{grpc_method}}",
                ),
            ),
            "Internal, Unknown and DataLoss: the log has a traceback for each.",
            steps=((0.001, RED),),
        ),
        Panel(
            "Dropped before the model",
            "reqps",
            ((rate("digits_requests_dropped_total", by="reason"), "{{reason}}"),),
            "Rejected because the queue was full, past their deadline, or cancelled by the client.",
        ),
        Panel(
            "Device failures and stalls",
            "short",
            (
                (increase("digits_device_failures_total", "10m", "reason"), "{{reason}}"),
                (f"sum(increase(digits_stalls_total{{{REPLICA}}}[10m]))", "stalls"),
            ),
            "In 10 minutes.",
            steps=((1, RED),),
        ),
    ),
    "How fast is it?": (
        Panel("p50", "s", (handling(0.5),), "Half of the unary calls are faster, by the server's clock."),
        Panel("p99", "s", (handling(0.99),), "1% of calls take longer.", steps=((0.01, ORANGE),)),
        Panel("p99.9", "s", (handling(0.999),), "The objective: below 10 ms.", steps=((0.01, RED),)),
        Panel(
            "Latency distribution",
            "s",
            ((rate("grpc_server_handling_seconds_bucket", UNARY, "le"), "{{le}}"),),
            "Calls a second in each bucket of the latency histogram.",
            "heatmap",
        ),
    ),
    "Is the objective met?": (
        Panel(
            "Calls that fail or take more than 10 ms",
            "percentunit",
            tuple((f"job:digits_slo_bad:ratio_{window}", window) for window in ("5m", "1h", "6h", "1d")),
            "The objective is 99.9% under 10 ms, so 0.1% may miss it. Of all replicas together.",
            steps=((0.001, RED),),
        ),
        Panel(
            "Burn rate of the error budget",
            "short",
            tuple((f"job:digits_slo_bad:ratio_{window} / 0.001", window) for window in ("5m", "1h", "6h", "3d")),
            "1 uses up the budget of 30 days in 30 days; 14.4 over an hour pages. Of all replicas together.",
            steps=((1, ORANGE), (14.4, RED)),
        ),
        Panel(
            "Calls that clients abandoned",
            "percentunit",
            (("job:digits_given_up:ratio10m", "cancelled or too late"),),
            "A frozen server sees a client's deadline as a cancellation that took no time. Of all replicas together.",
            steps=((0.05, RED),),
        ),
    ),
    "How is the time spent?": (
        Panel(
            "Mean: wait and run",
            "s",
            ((mean("digits_queue_seconds"), "wait"), (mean("digits_inference_seconds"), "run")),
            "In the queue, and in one run of the model.",
        ),
        Panel(
            "p99: wait and run",
            "s",
            ((quantile(0.99, "digits_queue_seconds"), "wait"), (quantile(0.99, "digits_inference_seconds"), "run")),
            "A longer wait is more load. A slower run is a busy or throttled machine.",
        ),
        Panel("Images in a run", "short", ((mean("digits_batch_size"), "mean"),), "Images in one run of the model."),
    ),
    "How full is it?": (
        Panel(
            "Calls in flight",
            "short",
            ((f"sum by (instance) (digits_requests_in_flight{{{REPLICA}}})", "{{instance}}"),),
            "Calls started and not completed.",
        ),
        Panel(
            "Images in the queue",
            "short",
            ((f"digits_queue_images{{{REPLICA}}}", "{{instance}}"),),
            "At the scrape; a queue fills and empties between scrapes.",
        ),
        Panel(
            "Share of the queue taken",
            "percentunit",
            ((f"job_instance:digits_queue:saturation{{{REPLICA}}}", "{{instance}}"),),
            "At 100% calls are rejected with RESOURCE_EXHAUSTED.",
            steps=((0.5, ORANGE), (0.9, RED)),
        ),
    ),
    "How are HTTP requests answered?": (
        Panel(
            "Requests by route",
            "reqps",
            ((rate(f"{HTTP}_count", by="http_request_method, http_route"), "{{http_request_method}} {{http_route}}"),),
            "This row is empty without --http-port.",
        ),
        Panel(
            "Errors by route and status",
            "reqps",
            (
                (
                    rate(
                        f"{HTTP}_count",
                        f'{REPLICA},http_response_status_code=~"[45].."',
                        "http_response_status_code, http_route",
                    ),
                    "{{http_response_status_code}} {{http_route}}",
                ),
            ),
            "4xx are errors of clients; 429 is overload, 499 a client that disconnected. The log has the cause of 500.",
        ),
        Panel(
            "p99 by route",
            "s",
            ((quantile(0.99, HTTP, by="http_route"), "{{http_route}}"),),
            "From the headers of a request to its response, so a slow upload counts.",
        ),
    ),
}
