# FlowStone: one image for the operator and for the workers inside the Jobs.
#
# Nothing is downloaded while it is built. `python -m tests.cluster wheels` (a part of `make image`) first unpacks the
# locked dependencies and FlowStone's own wheel into build/image/, for Python 3.13 on Linux; then
#
#     docker build --tag flowstone .
#
# makes the image. BASE_IMAGE may be any image that has a python3 of that version.
ARG BASE_IMAGE=python:3.13-slim
FROM ${BASE_IMAGE} AS dependencies

LABEL org.opencontainers.image.title="FlowStone" \
      org.opencontainers.image.licenses="Apache-2.0"

# The image's file system may be read-only, and log lines must not wait in a buffer.
ENV PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1

ENTRYPOINT ["flowstone"]

# A layer of its own, because it is large and changes seldom. Workers start several times a second, so everything is
# compiled here, and without a check of the sources at every import. A path file rather than PYTHONPATH makes the
# packages known, so that images built on this one may set PYTHONPATH for their own code.
COPY build/image/deps /opt/flowstone/deps
RUN python3 -m compileall -q -j 0 --invalidation-mode unchecked-hash /opt/flowstone/deps \
 && printf '/opt/flowstone/app\n/opt/flowstone/deps\n' \
      > "$(python3 -c 'import site; print(site.getsitepackages()[0])')/flowstone.pth" \
 && mkdir /opt/flowstone/bin \
 && printf '#!/usr/bin/env python3\nfrom flowstone.cli.entry import main\n\nmain()\n' > /opt/flowstone/bin/flowstone \
 && chmod 0755 /opt/flowstone/bin/flowstone

FROM dependencies
COPY build/image/app /opt/flowstone/app
RUN python3 -m compileall -q --invalidation-mode unchecked-hash /opt/flowstone/app \
 && install -m 0755 /opt/flowstone/app/flowstone/worker/first.sh /usr/local/bin/flowstone

USER 65532:65532
