# The image of the arch smollm2. Any Debian-like base with Python 3.10 or newer and bash will do.
#
#   docker build --tag tao-inference-service/smollm2:0.1.0 .
#
# Without a network: put the wheels into wheels/ and add --build-arg PIP_NO_INDEX=1 (.ci/build-smollm2-image does both).
ARG BASE_IMAGE=python:3.11-slim

FROM ${BASE_IMAGE} AS runtime
# llama.cpp needs GCC's OpenMP library, which minimal images lack.
RUN ldconfig -p | grep -q libgomp.so.1 \
    || { apt-get update && apt-get install -y --no-install-recommends libgomp1 \
        && rm -rf /var/lib/apt/lists/* /var/cache/apt/*; }
RUN useradd --uid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin inference
ENV PATH=/opt/venv/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONPATH=/opt/tao-run-inference-service/scripts \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    XDG_CACHE_HOME=/opt/cache \
    TAO_INF_MS_HOST=0.0.0.0

FROM runtime AS build
ARG PIP_NO_INDEX=0
ENV PIP_FIND_LINKS=/wheels PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
COPY wheels/ /wheels/
# A virtual environment, because Debian's own Python refuses to be installed into.
RUN python3 -m venv /opt/venv \
    && pip install "xllamacpp>=2026.4" "flask>=3" "PyYAML>=6" "jsonschema>=4.18" "platformdirs>=4"
COPY scripts/ /opt/tao-run-inference-service/scripts/
COPY references/ /opt/tao-run-inference-service/references/
COPY versions.yaml /opt/tao-run-inference-service/
RUN python3 -c "from inference_service.microservices.smollm2 import model; model.locate(model.bundled(), print)" \
    && python3 -m compileall -q /opt/tao-run-inference-service/scripts \
    && rm -rf /opt/venv/lib/python3*/site-packages/pip /opt/venv/lib/python3*/site-packages/setuptools \
    && chmod -R a+rX /opt

FROM runtime
COPY --from=build /opt/venv /opt/venv
COPY --from=build /opt/cache /opt/cache
COPY --from=build /opt/tao-run-inference-service /opt/tao-run-inference-service
USER inference
EXPOSE 8080
