# The server with its runtime dependencies and the embedded model; nothing of the trainer.
#   docker build -t timeline-ranker .        any base with Python 3.11+ and pip: --build-arg BASE=...
ARG BASE=python:3.11-slim

FROM ${BASE} AS build
WORKDIR /src
COPY pyproject.toml README.md ./
COPY service service
# No pip in the result: nothing is to be installed later.
RUN python3 -m venv --without-pip /opt/timeline-ranker \
 && python3 -m pip --python /opt/timeline-ranker/bin/python install --no-cache-dir .

FROM ${BASE}
COPY --from=build /opt/timeline-ranker /opt/timeline-ranker
ENV PATH=/opt/timeline-ranker/bin:$PATH PYTHONUNBUFFERED=1
# A number, so that Kubernetes can see that it is not root's.
USER 65532:65532
EXPOSE 8001 8002
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s \
  CMD timeline-ranker health --target "127.0.0.1:${TIMELINE_RANKER_GRPC_PORT:-8001}"
ENTRYPOINT ["timeline-ranker"]
CMD ["serve"]
