# The worker and every other command of `riskstream`, run by an unprivileged user, without build tools.

ARG PYTHON_IMAGE=python:3.12.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS base
# LightGBM links against OpenMP, although it runs with one thread here.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/*


FROM base AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/riskstream
ENV PATH=/opt/riskstream/bin:$PATH
WORKDIR /build

# Packages first, because they change seldom; pip checks every file against the lock.
COPY requirements.image.lock ./
RUN pip install --require-hashes --requirement requirements.image.lock

COPY pyproject.toml README.md ./
COPY stream stream
COPY offline offline
RUN pip install --no-deps --no-build-isolation --no-compile .

# Compile the kernels at build time by running the path from data to model to scores, so that the first
# transaction of a new container does not wait for the compiler, and a broken image fails to build.
# numba identifies a source file by its modification time; image layers keep whole seconds only, so set whole seconds.
# Run outside the source folder: Python would import the sources instead of the installed packages.
WORKDIR /tmp/warm-up
ENV NUMBA_CACHE_DIR=/var/cache/riskstream/numba
RUN cd /opt/riskstream/lib/python3.*/site-packages \
    && find stream offline -name '*.py' -exec touch --date=2020-01-01T00:00:00Z {} + \
    && python -m compileall -q stream offline
RUN riskstream simulate --transactions 5000 --output data.jsonl \
    && riskstream train --data data.jsonl --output bundle --trees 10 \
    && python -m stream.runtime.warmup bundle


FROM base
RUN groupadd --gid 10001 riskstream \
    && useradd --uid 10001 --gid riskstream --no-create-home --home-dir /var/lib/riskstream riskstream \
    && install --directory --owner=riskstream --group=riskstream \
        /var/lib/riskstream /var/lib/riskstream/state /var/lib/riskstream/bundle
COPY --from=build /opt/riskstream /opt/riskstream
# The cache of compiled kernels must be writable: another CPU type compiles its own kernels.
COPY --from=build --chown=riskstream:riskstream /var/cache/riskstream/numba /var/cache/riskstream/numba
ENV PATH=/opt/riskstream/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    NUMBA_CACHE_DIR=/var/cache/riskstream/numba \
    RISKSTREAM_STATE_DIR=/var/lib/riskstream/state \
    RISKSTREAM_BUNDLE=/var/lib/riskstream/bundle
WORKDIR /var/lib/riskstream
USER riskstream
EXPOSE 9108
ENTRYPOINT ["riskstream"]
CMD ["worker"]
