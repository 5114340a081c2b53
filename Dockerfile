# Targets: `serve` (the default), `gpu`, `train`; docs/containers.md says what is in each.
# Pin the base to a digest with --build-arg PYTHON_IMAGE=python:3.11.13-slim-bookworm@sha256:…
ARG PYTHON_IMAGE=python:3.11.13-slim-bookworm

FROM ${PYTHON_IMAGE} AS base
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 \
    GRAFT_HOST=0.0.0.0 GRAFT_PORT=8000 PATH=/venv/bin:$PATH
WORKDIR /graft
RUN python -m venv /venv

FROM base AS service
COPY requirements/serve.txt /tmp/
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --no-compile -r /tmp/serve.txt && pip uninstall --yes pip setuptools
COPY app app
COPY models models
# Scoring the sample proves that it works, and compiles the modules that a start imports: that halves the start.
RUN find / -xdev -name __pycache__ -prune -exec rm -r {} + \
    && PYTHONDONTWRITEBYTECODE= python -c 'import app.serving.server, app.main' \
    && PYTHONDONTWRITEBYTECODE= python -m app score app/web/samples/t-shirt.png --out /tmp/proof.csv
COPY deploy/rootfs.py /tmp/
RUN python /tmp/rootfs.py /rootfs /venv

# Training: torch from PyPI brings CUDA; the CPU build is a tenth of that, where its index can be reached:
# --build-arg PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
FROM base AS train
ARG PIP_EXTRA_INDEX_URL=
COPY requirements/train.txt /tmp/
RUN --mount=type=cache,target=/root/.cache/pip pip install --no-compile -r /tmp/train.txt
COPY app app
COPY training training
ENV GRAFT_DATA=/data HOME=/tmp
USER 10001
ENTRYPOINT ["python", "-m", "training"]

# On the full base image: NVIDIA's container toolkit mounts the driver into it and registers it with the loader.
FROM base AS gpu
COPY requirements/gpu.txt requirements/cuda.txt /tmp/
RUN --mount=type=cache,target=/root/.cache/pip pip install --no-compile -r /tmp/gpu.txt -r /tmp/cuda.txt
COPY app app
COPY models models
LABEL org.opencontainers.image.title="Graft, on a GPU" \
      org.opencontainers.image.description="Serves bundles of image models over HTTP, by CUDA" \
      org.opencontainers.image.licenses="Apache-2.0"
ENV GRAFT_PROVIDER=require-gpu NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
EXPOSE 8000
USER 10001
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s CMD ["python", "-m", "app.serving.healthcheck"]
CMD ["python", "-m", "app"]

# The service alone: no shell, no pip, no package manager, no torch.
FROM scratch AS serve
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Graft" \
      org.opencontainers.image.description="Serves bundles of image models over HTTP" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
ENV PATH=/venv/bin LANG=C.UTF-8 PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 GRAFT_HOST=0.0.0.0 GRAFT_PORT=8000
COPY --from=service /rootfs /
COPY --from=service /graft /graft
WORKDIR /graft
EXPOSE 8000
USER 10001:10001
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s CMD ["python", "-m", "app.serving.healthcheck"]
CMD ["python", "-m", "app"]
