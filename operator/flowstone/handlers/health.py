"""/healthz (the process lives), /readyz (nothing stands between it and its work) and /metrics."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from flowstone.telemetry import Health, Metrics


@asynccontextmanager
async def serve(health: Health, metrics: Metrics, *, port: int) -> AsyncIterator[int]:
    """Serve the three pages on `port` of all addresses; yields the port in use."""

    async def alive(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def ready(_: web.Request) -> web.Response:
        lines = [f"{subject}: {problem}" for subject, problem in sorted(health.problems.items())]
        return web.Response(text="\n".join(lines or ["ok"]) + "\n", status=503 if lines else 200)

    async def expose(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(metrics.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.add_routes([web.get("/healthz", alive), web.get("/readyz", ready), web.get("/metrics", expose)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "0.0.0.0", port)  # noqa: S104 - the kubelet probes it from outside the pod
    await site.start()
    try:
        yield int(runner.addresses[0][1])
    finally:
        await runner.cleanup()
