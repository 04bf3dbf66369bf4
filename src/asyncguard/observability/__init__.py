"""Guards under the tools that watch them: Prometheus, OpenTelemetry, logs; a module for each."""
