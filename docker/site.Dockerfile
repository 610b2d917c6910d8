# A hospital's agent: de-identification, door, ledger, SuperNode and executor. It listens on nothing. Build from the repository's root:
#   docker build --file docker/site.Dockerfile --tag medsynx-site .
# TORCH=cpu leaves out CUDA; another backend of uv's --torch-backend (auto, cu128) takes it in.
ARG PYTHON=3.11.14-slim-bookworm

FROM python:${PYTHON} AS build
ARG UV=0.12.24
ARG TORCH=cpu
RUN pip install --no-cache-dir "uv==${UV}"
WORKDIR /src
COPY pyproject.toml requirements.lock ./
RUN uv pip compile pyproject.toml --extra site --torch-backend ${TORCH} --constraint requirements.lock --quiet --output-file locked.txt \
 && uv venv /opt/medsynx \
 && uv pip install --python /opt/medsynx/bin/python --no-cache --no-deps --torch-backend ${TORCH} --requirement locked.txt
COPY README.md LICENSE ./
COPY medsynx medsynx
COPY evaluation evaluation
COPY server server
COPY site_agent site_agent
COPY strategies strategies
COPY onehost onehost
COPY tui tui
RUN uv pip install --python /opt/medsynx/bin/python --no-cache --no-deps .

FROM python:${PYTHON}
RUN useradd --system --uid 10001 --home-dir /site --no-create-home --shell /usr/sbin/nologin medsynx \
 && install -d -o 10001 -g 10001 -m 0700 /site /site/witness
COPY --from=build /opt/medsynx /opt/medsynx
ENV PATH=/opt/medsynx/bin:/usr/local/bin:/usr/bin:/bin PYTHONDONTWRITEBYTECODE=1 MEDSYNX_LOG=json
USER 10001:10001
# Mount the second copy of the books from another disk than the first; data sets are mounted read-only, where site.yaml says.
VOLUME ["/site", "/site/witness"]
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s --retries=3 CMD ["medsynx", "site", "health", "--dir", "/site"]
ENTRYPOINT ["medsynx"]
CMD ["site", "run", "--dir", "/site"]
