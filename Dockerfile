# Two images. Any Debian-like base with Python 3.10 or newer and bash will do.
#
#   docker build --tag tao-inference-service/smollm2:0.1.0 .                    the arch smollm2
#   docker build --target gateway --tag tao-inference-service/gateway:0.1.0 .   the gateway, and the arch claude
#
# Without a network: put the wheels into wheels/ and add --build-arg PIP_NO_INDEX=1 (.ci/build-images does both).
ARG BASE_IMAGE=python:3.11-slim

FROM ${BASE_IMAGE} AS base
RUN useradd --uid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin inference
ENV PATH=/opt/venv/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONPATH=/opt/tao-run-inference-service/scripts \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    TAO_INF_MS_HOST=0.0.0.0

FROM base AS build
ARG PIP_NO_INDEX=0
ENV PIP_NO_INDEX=$PIP_NO_INDEX PIP_FIND_LINKS=/wheels PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
COPY wheels/ /wheels/
# A virtual environment, because Debian's own Python refuses to be installed into.
RUN python3 -m venv /opt/venv
COPY references/ /opt/tao-run-inference-service/references/
COPY versions.yaml /opt/tao-run-inference-service/

FROM build AS build-gateway
RUN pip install "uvicorn>=0.54" "httptools>=0.6.3" "uvloop>=0.19" "orjson>=3.9.10" "psycopg[binary]>=3.1.18" \
        "opentelemetry-exporter-otlp-proto-http>=1.25" "opentelemetry-sdk>=1.25" \
        "jsonschema>=4.18" "platformdirs>=4" "psutil>=5.9" "PyYAML>=6" "requests>=2.31" "rich>=13" \
    && rm -rf /opt/venv/lib/python3*/site-packages/pip /opt/venv/lib/python3*/site-packages/setuptools
COPY scripts/inference_service/ /opt/tao-run-inference-service/scripts/inference_service/
COPY scripts/serve_gateway.py scripts/callers.py scripts/usage_report.py /opt/tao-run-inference-service/scripts/
RUN python3 -m compileall -q /opt/tao-run-inference-service/scripts \
    && chmod -R a+rX /opt && chmod a+x /opt/tao-run-inference-service/scripts/*.py

FROM base AS gateway
COPY --from=build-gateway /opt/venv /opt/venv
COPY --from=build-gateway /opt/tao-run-inference-service /opt/tao-run-inference-service
# The only folder that is written to: rows on their way to the database, and the database itself where it is SQLite. As the
# home folder, because that is what runtimes such as Apptainer replace by one that can be written.
ENV HOME=/var/lib/gateway \
    PATH=/opt/tao-run-inference-service/scripts:/opt/venv/bin:/usr/local/bin:/usr/bin:/bin
RUN install -d -m 1777 "$HOME"
VOLUME /var/lib/gateway
USER 10001:10001
EXPOSE 8080
# It ends when what is under way is answered, after a minute at the latest.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s --retries=3 CMD ["python3", "-S", "-c", \
    "import http.client as h; c = h.HTTPConnection('127.0.0.1', 8080, timeout=4); c.request('GET', '/api/v1/health/liveness'); raise SystemExit(c.getresponse().status != 200)"]
CMD ["serve_gateway.py", "--host", "0.0.0.0", "--port", "8080", "--json-log"]

FROM base AS smollm2-base
# llama.cpp needs GCC's OpenMP library, which minimal images lack.
RUN ldconfig -p | grep -q libgomp.so.1 \
    || { apt-get update && apt-get install -y --no-install-recommends libgomp1 \
        && rm -rf /var/lib/apt/lists/* /var/cache/apt/*; }
ENV XDG_CACHE_HOME=/opt/cache

FROM build AS build-smollm2
ENV XDG_CACHE_HOME=/opt/cache
RUN pip install "xllamacpp>=2026.4" "flask>=3" "PyYAML>=6" "jsonschema>=4.18" "platformdirs>=4"
COPY scripts/inference_service/ /opt/tao-run-inference-service/scripts/inference_service/
RUN python3 -c "from inference_service.microservices.smollm2 import model; model.locate(model.bundled(), print)" \
    && python3 -m compileall -q /opt/tao-run-inference-service/scripts \
    && rm -rf /opt/venv/lib/python3*/site-packages/pip /opt/venv/lib/python3*/site-packages/setuptools \
    && chmod -R a+rX /opt

FROM smollm2-base
COPY --from=build-smollm2 /opt/venv /opt/venv
COPY --from=build-smollm2 /opt/cache /opt/cache
COPY --from=build-smollm2 /opt/tao-run-inference-service /opt/tao-run-inference-service
USER inference
EXPOSE 8080
