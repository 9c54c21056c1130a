# Two stages: wheels are built with all tools, the image that runs has none of them and no root.
FROM python:3.12-slim AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY gateway gateway
RUN python -m venv /opt/comfyui-gateway \
 && /opt/comfyui-gateway/bin/pip install --no-cache-dir .

FROM python:3.12-slim
RUN useradd --system --uid 10001 --home-dir /data --create-home gateway
COPY --from=build /opt/comfyui-gateway /opt/comfyui-gateway
ENV PATH=/opt/comfyui-gateway/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    COMFYUI_GATEWAY_HOST=0.0.0.0 \
    COMFYUI_GATEWAY_DATA_DIR=/data
USER gateway
VOLUME /data
EXPOSE 8288
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8288/healthz', timeout=2)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["comfyui-gateway"]
CMD ["serve"]
