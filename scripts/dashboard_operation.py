"""The dashboard's other panels: answers, changes, the load balancer, resources and Prometheus."""

from __future__ import annotations

from dashboard_queries import ENVOY, GREEN, ORANGE, RED, REPLICA, Panel, increase, rate

_SHARES = (
    f"sum by (digit) (increase(digits_predictions_total{{{REPLICA}}}[1h]))"
    f" / on () group_left () sum(increase(digits_predictions_total{{{REPLICA}}}[1h]))"
)

OPERATION: dict[str, tuple[Panel, ...]] = {
    "Are the answers still good?": (
        Panel(
            "Digits predicted, last hour",
            "percentunit",
            ((_SHARES, "{{digit}}"),),
            "The share of each digit among the answers.",
        ),
        Panel(
            "Distance from the training data",
            "short",
            (("job:digits_predictions:drift1h", "distance"),),
            "Half the sum of the differences: 0 for equal shares of digits, 1 for none in common. Of all replicas.",
            steps=((0.2, ORANGE),),
        ),
        Panel(
            "Winning activation",
            "short",
            (("job:digits_confidence:mean1h", "mean"), ("job:digits_unsure:ratio1h", "unsure share")),
            "On the test images the mean is 0.94. Of all replicas together.",
        ),
    ),
    "Which changes were loaded?": (
        Panel(
            "Last change rejected",
            "short",
            ((f"1 - digits_last_reload_successful{{{REPLICA}}} == 1", "{{instance}} {{kind}}"),),
            "Empty if the last change of the model, certificate and tokens was loaded.",
            steps=((1, RED),),
        ),
        Panel(
            "Models loaded and rejected",
            "short",
            ((increase("digits_model_reloads_total", "10m", "instance, result"), "{{instance}} {{result}}"),),
            "In 10 minutes.",
        ),
        Panel(
            "Certificates and tokens",
            "short",
            (
                (
                    increase("digits_credentials_rotations_total", "10m", "instance, kind, result"),
                    "{{instance}} {{kind}} {{result}}",
                ),
            ),
            "Rotations in 10 minutes.",
        ),
        Panel(
            "Time left of the certificate",
            "s",
            (
                (f"(digits_tls_expiry_timestamp_seconds{{{REPLICA}}} > 0) - time()", "{{instance}}"),
                ('envoy_listener_ssl_certificate_expiration_unix_time_seconds{job="envoy"} - time()', "Envoy"),
            ),
            "Of the server's own and of Envoy's. Empty without TLS.",
            "stat",
            ((7 * 86400, GREEN),),
            RED,
        ),
    ),
    "Is the load balancer healthy?": (
        Panel(
            "Replicas that Envoy sends calls to",
            "short",
            (
                (f"max(envoy_cluster_membership_healthy{{{ENVOY}}})", "healthy"),
                (f"max(envoy_cluster_membership_total{{{ENVOY}}})", "known"),
            ),
            "This row is empty without Envoy.",
        ),
        Panel(
            "Statuses that clients get",
            "reqps",
            (
                (f"sum(rate(envoy_cluster_grpc_0{{{ENVOY}}}[$__rate_interval]))", "OK"),
                (f"sum(rate(envoy_cluster_grpc_14{{{ENVOY}}}[$__rate_interval]))", "UNAVAILABLE"),
            ),
            "As Envoy sends them, including its own.",
        ),
        Panel(
            "Calls repeated",
            "reqps",
            ((f"sum(rate(envoy_cluster_upstream_rq_retry{{{ENVOY}}}[$__rate_interval]))", "repeated"),),
            "Calls that Envoy sent to another replica.",
        ),
    ),
    "What does it use?": (
        Panel(
            "Memory",
            "bytes",
            ((f"process_resident_memory_bytes{{{REPLICA}}}", "{{instance}}"),),
            "90 to 150 MB at rest.",
            steps=((400e6, RED),),
        ),
        Panel(
            "CPU",
            "percentunit",
            ((rate("process_cpu_seconds_total", by="instance"), "{{instance}}"),),
            "100% is one core.",
        ),
        Panel(
            "Share of file handles and of connections",
            "percentunit",
            (
                (f"job_instance:process_fds:ratio{{{REPLICA}}}", "{{instance}} handles"),
                (f"job_instance:digits_connections:saturation{{{REPLICA}}}", "{{instance}} connections"),
            ),
            "At 100% connections are closed at once.",
            steps=((0.8, RED),),
        ),
        Panel(
            "Connections and calls ended",
            "short",
            (
                (
                    increase("digits_connections_rejected_total", "15m", "instance, reason"),
                    "{{instance}} rejected: {{reason}}",
                ),
                (
                    increase("digits_connections_ended_total", "15m", "instance, reason"),
                    "{{instance}} ended: {{reason}}",
                ),
                (increase("digits_calls_ended_total", "15m", "instance, reason"), "{{instance}} call: {{reason}}"),
            ),
            "By the limits of the server, in 15 minutes: rejected before the first call, or ended for their memory. "
            "The native transport counts connections, the grpcio transport calls.",
        ),
    ),
    "Does Prometheus scrape it?": (
        Panel(
            "Scrapes that succeed",
            "short",
            ((f"up{{{REPLICA}}}", "{{instance}}"),),
            "1 if Prometheus reaches the metrics port.",
        ),
        Panel(
            "Seconds of a scrape",
            "s",
            ((f"scrape_duration_seconds{{{REPLICA}}}", "{{instance}}"),),
            "It should take milliseconds.",
            steps=((1, ORANGE),),
        ),
        Panel(
            "Samples of a scrape",
            "short",
            ((f"scrape_samples_scraped{{{REPLICA}}}", "{{instance}}"),),
            "Series of one replica.",
        ),
        Panel(
            "Lost log lines and spans",
            "short",
            (
                (f"sum(digits_log_lines_dropped_total{{{REPLICA}}})", "log lines since the start"),
                (
                    f'sum by (result) (increase(digits_trace_spans_total{{{REPLICA},result!="sent"}}[10m]))',
                    "spans {{result}} in 10 minutes",
                ),
            ),
            "A full disk or a collector that does not answer.",
            steps=((1, ORANGE),),
        ),
    ),
}
