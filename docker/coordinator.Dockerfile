# The coordinator: SuperLink behind its gate, and the runs. Build from the repository's root:
#   docker build --file docker/coordinator.Dockerfile --tag medsynx-coordinator .
# TORCH=cpu leaves out CUDA; another backend of uv's --torch-backend (auto, cu128) takes it in.
ARG PYTHON=3.11.14-slim-bookworm

FROM python:${PYTHON} AS build
ARG UV=0.12.24
ARG TORCH=cpu
RUN pip install --no-cache-dir "uv==${UV}"
WORKDIR /src
COPY pyproject.toml requirements.lock ./
RUN uv pip compile pyproject.toml --extra federation --torch-backend ${TORCH} --constraint requirements.lock --quiet --output-file locked.txt \
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
RUN useradd --system --uid 10001 --home-dir /coordinator --no-create-home --shell /usr/sbin/nologin medsynx \
 && install -d -o 10001 -g 10001 -m 0700 /coordinator
COPY --from=build /opt/medsynx /opt/medsynx
ENV PATH=/opt/medsynx/bin:/usr/local/bin:/usr/bin:/bin PYTHONDONTWRITEBYTECODE=1 MEDSYNX_LOG=json
USER 10001:10001
VOLUME /coordinator
EXPOSE 8443
HEALTHCHECK --interval=30s --timeout=5s --start-period=90s --retries=3 \
  CMD ["python", "-c", "import ssl, urllib.request as u; u.urlopen('https://127.0.0.1:8443/health', timeout=4, context=ssl._create_unverified_context())"]
ENTRYPOINT ["medsynx"]
CMD ["coordinator", "serve", "--dir", "/coordinator", "--host", "0.0.0.0", "--port", "8443", "--tls-ca", "/run/secrets/tls-ca", "--tls-cert", "/run/secrets/tls-cert", "--tls-key", "/run/secrets/tls-key"]
