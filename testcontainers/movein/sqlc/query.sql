-- name: PublishMessage :exec
INSERT INTO oncemill.outbox (topic, uuid, metadata, ordering_key, payload)
VALUES (@topic, @uuid, @metadata, @ordering_key, @payload);
