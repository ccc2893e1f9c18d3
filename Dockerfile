# The image contains the binary and the tools that it runs: mkfs and fsck of ext4 and XFS. The binary uses system calls
# for mounts, loop devices and growth.

FROM rust:1.95-slim-bookworm AS build
WORKDIR /src
COPY Cargo.toml Cargo.lock build.rs ./
COPY benches benches
COPY proto proto
COPY src src
# The profile `quick` builds much faster, for tests.
ARG PROFILE=release
RUN cargo build --locked --profile "$PROFILE" --bin holdfast && install "target/$PROFILE/holdfast" /usr/local/bin/holdfast

FROM debian:bookworm-slim
ARG VERSION=0.2.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Holdfast" \
      org.opencontainers.image.description="A Kubernetes CSI driver that makes persistent volumes from the disks that nodes already have" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
RUN apt-get update \
    && apt-get install -y --no-install-recommends e2fsprogs xfsprogs \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /usr/local/bin/holdfast /usr/local/bin/holdfast
COPY LICENSE /usr/share/doc/holdfast/LICENSE
ENTRYPOINT ["/usr/local/bin/holdfast"]
