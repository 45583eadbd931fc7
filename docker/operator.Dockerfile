# The image of the operator: no torch, no compiler.
#
#   docker build -f docker/operator.Dockerfile -t asysi-operator:0.1.0 .
#
# BASE   pinned by digest in a release: --build-arg BASE=python:3.11-slim-bookworm@sha256:…
ARG BASE=python:3.11-slim-bookworm

# The dependencies, without our own code, so that a code change does not reinstall them.
FROM ${BASE} AS runtime
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends tini && rm -rf /var/lib/apt/lists/* \
    && python -m venv --without-pip /opt/asysi
COPY pyproject.toml /source/
COPY docker/requirements.py /source/docker/
RUN python /source/docker/requirements.py operator >/tmp/requirements.txt \
    && python -m pip --python /opt/asysi/bin/python install -q --no-cache-dir --no-compile -r /tmp/requirements.txt \
    && rm /tmp/requirements.txt \
    && /opt/asysi/bin/python -m compileall -q -j 0 /opt/asysi/lib

# Our code: the whole wheel in pure Python; modules that need torch or the ring are never imported.
FROM runtime AS code
RUN python -m venv /opt/tools && /opt/tools/bin/pip install -q --no-cache-dir "cyclonedx-bom>=7,<8"
COPY pyproject.toml README.md LICENSE /source/
COPY operator /source/operator
COPY workers /source/workers
RUN ASYSI_NATIVE=0 /opt/tools/bin/pip --python /opt/asysi/bin/python install -q --no-cache-dir --no-deps --prefix /code/opt/asysi /source
RUN mkdir -p /code/usr/share/asysi && cp -a /code/opt/asysi/. /opt/asysi/ \
    && /opt/tools/bin/cyclonedx-py environment /opt/asysi/bin/python -o /code/usr/share/asysi/sbom.cdx.json

FROM runtime
ARG BASE
ARG version=0.1.0
ARG revision=unknown
LABEL org.opencontainers.image.title="asysi-operator" \
      org.opencontainers.image.description="Operator of A-Sys-I, a microscope for PyTorch models in motion" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${version}" \
      org.opencontainers.image.revision="${revision}" \
      org.opencontainers.image.base.name="${BASE}"
COPY --from=code /code /
COPY docker/entrypoint.sh /usr/local/bin/entrypoint.sh
# Limit malloc arenas so that threads reuse memory freed by others; without the limit each keeps its own.
ENV PATH=/opt/asysi/bin:$PATH \
    HOME=/tmp USER=asysi \
    MALLOC_ARENA_MAX=2 \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
USER 65532:65532
WORKDIR /tmp
ENTRYPOINT ["entrypoint.sh"]
CMD ["python", "-m", "asysi_operator"]
