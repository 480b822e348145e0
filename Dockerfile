# An image with the program oncemill and nothing else:
#
#	docker build -t oncemill .
#	docker run --rm -e ONCEMILL_DATABASE_URL oncemill migrate
#
# deploy/kubernetes runs it in a cluster.
FROM golang:1.26 AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
RUN CGO_ENABLED=0 go build -trimpath -ldflags="-s -w" -o /out/oncemill ./cmd/oncemill

FROM scratch
# Whom to trust where Postgres, NATS or Kafka show certificates.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /out/oncemill /oncemill
# A number, so that Kubernetes can tell that it is not root.
USER 65532:65532
ENTRYPOINT ["/oncemill"]
