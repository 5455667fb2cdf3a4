# loraine in a container, with a software Vulkan driver and the drivers of Mesa for AMD and Intel GPUs.
#
#   docker build -t loraine .
#   docker run --rm -it -v "$PWD":/work loraine info
#
# AMD and Intel GPUs: add --device /dev/dri. NVIDIA GPUs: install the NVIDIA container toolkit, and add --gpus all.

FROM rust:1.95-slim-bookworm AS build
WORKDIR /src
COPY . .
RUN cargo build --release --locked --bin loraine

FROM debian:bookworm-slim
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates libvulkan1 mesa-vulkan-drivers \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /src/target/release/loraine /usr/local/bin/loraine
# The NVIDIA container toolkit brings only compute libraries unless Vulkan is asked for.
ENV NVIDIA_DRIVER_CAPABILITIES=compute,graphics,utility
# Downloaded models and autotune results; mount a volume here to keep them.
ENV HF_HOME=/cache/huggingface LORAINE_CACHE=/cache/loraine
WORKDIR /work
ENTRYPOINT ["loraine"]
CMD ["info"]
