# The service alone: no torch, no compiler, no pip at run time.
FROM python:3.11-slim-bookworm AS build
RUN python -m venv /venv
COPY requirements/serve.txt /tmp/serve.txt
RUN --mount=type=cache,target=/root/.cache/pip \
    /venv/bin/pip install --disable-pip-version-check --no-compile -r /tmp/serve.txt \
    && /venv/bin/pip uninstall --yes pip setuptools

FROM python:3.11-slim-bookworm
LABEL org.opencontainers.image.title="Graft" \
      org.opencontainers.image.description="Serves bundles of image models over HTTP" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /venv /venv
WORKDIR /graft
COPY app app
COPY models models
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 GRAFT_HOST=0.0.0.0 GRAFT_PORT=8000
EXPOSE 8000
USER 10001
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s \
    CMD ["python", "-c", "import os, urllib.request as u; u.urlopen(f\"http://127.0.0.1:{os.environ['GRAFT_PORT']}/readyz\", timeout=2)"]
CMD ["python", "-m", "app"]
