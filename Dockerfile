# Rookery for CPU or CUDA. The same scripts and requirement files as the README install it.
#   docker build -t rookery .
#   docker build -t rookery:cuda --build-arg ACCELERATOR=cuda .
#   docker build -t rookery:spark --target spark .
ARG PYTHON_VERSION=3.11

FROM python:${PYTHON_VERSION}-slim-bookworm AS build
ARG ACCELERATOR=cpu
ARG TORCH_INDEX_URL
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /opt/rookery
COPY pyproject.toml README.md LICENSE ./
COPY requirements requirements
COPY scripts scripts
COPY src src
# An argument that was not given must stay unset: empty means no index besides pip's own.
RUN [ -n "${TORCH_INDEX_URL}" ] || unset TORCH_INDEX_URL; \
    ACCELERATOR=${ACCELERATOR} scripts/install base
RUN export PIP_CONSTRAINT=/opt/rookery/.venv/constraints.txt; \
    .venv/bin/python -m pip install -e '.[object-store]'; \
    if [ "${ACCELERATOR}" = cuda ]; then .venv/bin/python -m pip install -e '.[cluster]'; else \
        .venv/bin/python -m pip install -r requirements/cluster-cpu.txt; \
        .venv/bin/python -m pip install --no-deps -r requirements/cluster-cpu-no-deps.txt; fi; \
    .venv/bin/python -m compileall -q src

FROM build AS build-spark
RUN PIP_CONSTRAINT=/opt/rookery/.venv/constraints.txt .venv/bin/python -m pip install -e '.[spark]'

FROM python:${PYTHON_VERSION}-slim-bookworm AS runtime
RUN useradd --uid 10001 --create-home --shell /usr/sbin/nologin rookery
ENV PATH=/opt/rookery/.venv/bin:$PATH PYTHONUNBUFFERED=1 OMP_WAIT_POLICY=passive
USER 10001:10001
WORKDIR /home/rookery
CMD ["rookery", "--help"]

# For `rookery twhin ingest --engine spark`: PySpark and a Java, 600 MB that no other role needs.
FROM runtime AS spark
COPY --from=eclipse-temurin:17-jre /opt/java/openjdk /opt/java/openjdk
COPY --from=build-spark /opt/rookery /opt/rookery
ENV JAVA_HOME=/opt/java/openjdk

FROM runtime
COPY --from=build /opt/rookery /opt/rookery
