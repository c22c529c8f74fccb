# Built once, run as any of the services: docker run tidemill run validator flights
FROM python:3.11-slim AS build
WORKDIR /src
COPY pyproject.toml README.md CHANGELOG.md ./
COPY docker-compose.yml ./
COPY examples examples
COPY k8s k8s
COPY ops ops
COPY schemas schemas
COPY services services
RUN python -m venv /opt/tidemill \
    && /opt/tidemill/bin/pip install --no-cache-dir --disable-pip-version-check '.[services]'

FROM python:3.11-slim
# One seed for the hashes of strings, so that a model learns the same in every process.
ENV PYTHONHASHSEED=0 \
    PYTHONUNBUFFERED=1 \
    PATH=/opt/tidemill/bin:$PATH \
    TIDEMILL_HTTP_PORT=8080 \
    TIDEMILL_STORE_URL=/artifacts \
    TIDEMILL_ARCHIVE_URL=/archive
# A new volume takes over the owner of the folder that it is mounted on.
RUN useradd --uid 10001 --no-create-home tidemill \
    && install --directory --owner=10001 --group=10001 /artifacts /archive /state /keys /keys/public /keys/learner /keys/gate \
        /keys/status /keys/monitor /password
COPY --from=build /opt/tidemill /opt/tidemill
USER 10001:10001
WORKDIR /tmp
EXPOSE 8080
ENTRYPOINT ["tidemill"]
CMD ["--help"]
