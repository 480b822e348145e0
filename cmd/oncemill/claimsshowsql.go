package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/internal/metadata"
	"github.com/oncemill/oncemill/internal/storedkey"
)

// mostShownEvents is how many events are shown beside a claim.
const mostShownEvents = 10

// readShown reads all there is about a key, at one moment.
func readShown(ctx context.Context, consumer *oncemill.Consumer, key string) (*shownClaim, error) {
	s := &shownClaim{StoredKey: storedkey.Of(key)}
	s.Consumer, s.Key, s.State = consumer.Name(), key, stateFree
	r := newClaimsReader(consumer.Inbox())
	err := r.read(ctx, func(tx *sql.Tx) error {
		if err := s.find(ctx, r, tx); err != nil {
			return err
		}
		for _, read := range []func(context.Context, claimsReader, *sql.Tx) error{s.readErrors, s.readParked, s.readWatermark, s.readEvents} {
			if err := read(ctx, r, tx); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read what there is of key %q: %w", key, err)
	}
	if s.Token != 0 {
		s.ProviderKey = oncemill.InDoubt{Consumer: s.Consumer, Key: s.Key}.ProviderKey()
	}
	if s.known = s.State != stateFree || len(s.Events) > 0; !s.known {
		s.known, err = isKnown(ctx, consumer.Inbox(), s.Consumer)
	}
	return s, err
}

// find reads the claim. A key that is too long to be stored is known to most only as lists
// show it, which is what stands for it.
func (s *shownClaim) find(ctx context.Context, r claimsReader, tx *sql.Tx) error {
	err := s.readClaim(ctx, r, tx)
	if errors.Is(err, sql.ErrNoRows) && storedkey.IsHash(s.Key) {
		own := s.StoredKey
		s.StoredKey = s.Key
		if err = s.readClaim(ctx, r, tx); errors.Is(err, sql.ErrNoRows) {
			s.StoredKey = own
		}
	}
	if errors.Is(err, sql.ErrNoRows) {
		return nil
	}
	return err
}

func (s *shownClaim) readClaim(ctx context.Context, r claimsReader, tx *sql.Tx) error {
	var until, ask sql.NullTime
	row := tx.QueryRowContext(ctx, r.in(`
SELECT `+listedColumns+`, effect_until, CASE WHEN ask_after < 'infinity' THEN ask_after END, COALESCE(ask_after = 'infinity', false),
	COALESCE(asked, 0), COALESCE(scope, ''), result
FROM {schema}.claims WHERE consumer = $1 AND key = $2`), s.Consumer, s.StoredKey)
	c, err := scanListed(s.Consumer, row.Scan, &until, &ask, &s.GivenUp, &s.Asked, &s.Scope, &s.Result)
	if err != nil {
		return err
	}
	c.Key = s.Key // as it was asked for
	s.listedClaim, s.EffectUntil, s.AskAfter = c, until.Time, ask.Time
	return nil
}

func (s *shownClaim) readErrors(ctx context.Context, r claimsReader, tx *sql.Tx) error {
	var e shownErrors
	err := tx.QueryRowContext(ctx, r.in(`
SELECT errors, last_error, last_at FROM {schema}.handler_errors WHERE consumer = $1 AND key = $2`), s.Consumer, s.StoredKey).Scan(&e.Errors, &e.Last, &e.LastAt)
	if errors.Is(err, sql.ErrNoRows) {
		return nil
	}
	s.Errors = &e
	return err
}

func (s *shownClaim) readParked(ctx context.Context, r claimsReader, tx *sql.Tx) error {
	var m oncemill.ParkedMessage
	var meta []byte
	err := tx.QueryRowContext(ctx, r.in(`
SELECT topic, uuid, metadata, ordering_key, payload FROM {schema}.parked WHERE consumer = $1 AND key = $2`), s.Consumer, s.StoredKey).
		Scan(&m.Topic, &m.UUID, &meta, &m.OrderingKey, &m.Payload)
	if errors.Is(err, sql.ErrNoRows) {
		return nil
	}
	if err == nil {
		m.Metadata, err = metadata.Decode(meta)
	}
	s.Message = &m
	return err
}

func (s *shownClaim) readWatermark(ctx context.Context, r claimsReader, tx *sql.Tx) error {
	err := tx.QueryRowContext(ctx, r.in(`SELECT purged_before FROM {schema}.watermarks WHERE consumer = $1`), s.Consumer).Scan(&s.PurgedBefore)
	if errors.Is(err, sql.ErrNoRows) {
		return nil
	}
	return err
}

func (s *shownClaim) readEvents(ctx context.Context, r claimsReader, tx *sql.Tx) error {
	rows, err := tx.QueryContext(ctx, r.in(`
SELECT id, at, kind, COALESCE(token, 0), COALESCE(actor, ''), COALESCE(note, ''), COALESCE(action, ''), COALESCE(agent, ''),
	COALESCE(amount::text, ''), COALESCE(currency, ''), payload, result
FROM {schema}.events WHERE consumer = $1 AND key = $2 ORDER BY id DESC LIMIT $3`), s.Consumer, s.StoredKey, mostShownEvents)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var e oncemill.Event
		if err := rows.Scan(&e.ID, &e.At, &e.Kind, &e.Token, &e.Actor, &e.Note, &e.Action, &e.Agent, &e.Amount, &e.Currency, &e.Payload, &e.Result); err != nil {
			return err
		}
		s.Events = append(s.Events, e)
	}
	slices.Reverse(s.Events)
	return rows.Err()
}
